//! A record of every request, to check how a client used the API.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde::Serialize;

use super::call::Endpoint;

/// One request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Request {
    /// Real time between the simulator's start and the request's arrival.
    pub at: Duration,
    /// The endpoint.
    pub endpoint: Endpoint,
    /// The directory it reads, if its path or query shows that.
    pub directory: Option<String>,
    /// Path and query as sent.
    pub uri: String,
    /// The answer's status; 0 until there is one.
    pub status: u16,
}

/// Requests by endpoint and status.
pub type RequestCounts = BTreeMap<Endpoint, BTreeMap<u16, usize>>;

/// All requests, oldest first.
#[derive(Debug)]
pub(crate) struct Record {
    start: Instant,
    requests: Vec<Request>,
    forgotten: usize,
}

impl Record {
    pub(crate) fn new() -> Self {
        Self {
            start: Instant::now(),
            requests: Vec::new(),
            forgotten: 0,
        }
    }

    /// Records an arrival. Returns its number, counted from the simulator's start.
    pub(crate) fn arrive(
        &mut self,
        endpoint: Endpoint,
        directory: Option<String>,
        uri: &str,
        now: Instant,
    ) -> usize {
        self.requests.push(Request {
            at: now.duration_since(self.start),
            endpoint,
            directory,
            uri: uri.to_owned(),
            status: 0,
        });
        self.forgotten + self.requests.len() - 1
    }

    pub(crate) fn answered(&mut self, number: usize, status: u16) {
        let index = number.checked_sub(self.forgotten);
        if let Some(request) = index.and_then(|index| self.requests.get_mut(index)) {
            request.status = status;
        }
    }

    pub(crate) fn requests(&self) -> &[Request] {
        &self.requests
    }

    /// Takes all requests out.
    pub(crate) fn take(&mut self) -> Vec<Request> {
        self.forgotten += self.requests.len();
        std::mem::take(&mut self.requests)
    }

    pub(crate) fn counts(&self) -> RequestCounts {
        let mut counts = RequestCounts::new();
        for request in &self.requests {
            *counts
                .entry(request.endpoint)
                .or_default()
                .entry(request.status)
                .or_default() += 1;
        }
        counts
    }
}

/// The greatest number of `wanted` requests within any interval of length `span`. `requests` must be oldest first.
pub fn peak(requests: &[Request], span: Duration, wanted: impl Fn(&Request) -> bool) -> usize {
    let times: Vec<Duration> = requests
        .iter()
        .filter(|request| wanted(request))
        .map(|request| request.at)
        .collect();
    let within = |start: usize| {
        times[start..]
            .iter()
            .take_while(|at| **at < times[start] + span)
            .count()
    };
    (0..times.len()).map(within).max().unwrap_or(0)
}
