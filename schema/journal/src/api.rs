//! Requests to the broker's API. They bypass the client library's own helper, because that writes whole answers, with
//! the bodies requested, to its debug log.

use std::time::Instant;

use async_nats::client::Request;
use async_nats::jetstream::response::Response;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::connection::{Journal, REQUEST_TIMEOUT};
use crate::error::{Error, Unavailable};

impl Journal {
    /// Sends a request and waits for the answer, for at most 3 seconds. Before that, waits for a connection, again for
    /// at most 3 seconds.
    pub(crate) async fn ask<Q, A>(&self, subject: String, question: &Q) -> Result<A, Error>
    where
        Q: Serialize + ?Sized,
        A: DeserializeOwned,
    {
        self.connected().await?;
        let asked = Instant::now();
        let answer = self.ask_now(subject, question).await;
        let answered = match &answer {
            Err(Error::Unavailable(why)) => Err(*why),
            _ => Ok(()),
        };
        self.heed(&self.silence, asked, answered);
        answer
    }

    /// The same for a request whose silence says nothing about the broker. Does not wait for a connection.
    pub(crate) async fn ask_now<Q, A>(&self, subject: String, question: &Q) -> Result<A, Error>
    where
        Q: Serialize + ?Sized,
        A: DeserializeOwned,
    {
        let question = serde_json::to_vec(question).map_err(|_| Error::Unreadable)?;
        let request = Request::new().payload(question.into()).timeout(None);
        let asking = self.while_connected(self.client.send_request(format!("$JS.API.{subject}"), request));
        let message = match tokio::time::timeout(REQUEST_TIMEOUT, asking).await {
            Ok(answer) => answer??,
            Err(_) => return Err(Unavailable::TimedOut.into()),
        };
        match serde_json::from_slice(&message.payload).map_err(|_| Error::Unreadable)? {
            Response::Ok(answer) => Ok(answer),
            Response::Err { error } => Err(error.into()),
        }
    }
}
