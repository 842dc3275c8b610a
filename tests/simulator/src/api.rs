//! The HTTP API: authentication, limits and injected faults around the pure endpoints, in the order in which WorkOS
//! applies them.
//!
//! The world is locked only while an answer is read from it, never during a wait.

pub(crate) mod answer;
mod call;
mod events;
pub(crate) mod faults;
pub(crate) mod hooks;
pub(crate) mod limits;
mod paging;
pub(crate) mod record;
mod state;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use answer::Answer;
use axum::{
    extract::{Query as AxumQuery, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
pub use call::Endpoint;
use call::{Query, endpoint};
pub use events::EventsOptions;
use faults::{Half, mishap};
use hooks::{Action, Moment};
use state::Sight;

use crate::{shared::Shared, versioned::When};

/// Answers any request outside `/_sim/`.
pub(crate) async fn handle(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    AxumQuery(pairs): AxumQuery<Vec<(String, String)>>,
) -> Response {
    let arrival = Instant::now();
    let (endpoint, id) = endpoint(uri.path());
    let request = Request {
        endpoint,
        id,
        uri: &uri.to_string(),
        query: &Query(pairs),
    };
    let directory = request.directory(&shared);
    let number = shared
        .lock_record()
        .arrive(endpoint, directory.clone(), request.uri, arrival);
    let mut retry_after = None;
    let answer = if method != Method::GET {
        Answer::not_found("Page", uri.path())
    } else if !authorized(&headers, &shared.api_key) {
        Answer::unauthorized()
    } else if let Err(pause) = admit(&shared, &request, directory.as_deref(), arrival) {
        retry_after = shared.tuning().limits.retry_after.then_some(pause);
        Answer::rate_limited()
    } else {
        respond(&shared, &request, directory.as_deref(), number).await
    };
    shared.lock_record().answered(number, answer.status);
    into_response(answer, &shared, retry_after)
}

struct Request<'a> {
    endpoint: Endpoint,
    id: &'a str,
    uri: &'a str,
    query: &'a Query,
}

impl Request<'_> {
    /// The directory that this request reads: named in the request, or found through the group or user named in it.
    fn directory(&self, shared: &Shared) -> Option<String> {
        if let Some(id) = self.query.get("directory") {
            return Some(id.to_owned());
        }
        let world = shared.world();
        let of_user = |id: &str| Some(world.users.get(id)?.newest()?.directory.clone());
        let of_group = |id: &str| Some(world.groups.get(id)?.newest()?.directory.clone());
        match self.endpoint {
            Endpoint::Directory => Some(self.id.to_owned()),
            Endpoint::User => of_user(self.id),
            Endpoint::Group => of_group(self.id),
            Endpoint::Users => self.query.get("group").and_then(of_group),
            Endpoint::Groups => self.query.get("user").and_then(of_user),
            Endpoint::Directories | Endpoint::Events | Endpoint::Other => None,
        }
    }
}

fn authorized(headers: &HeaderMap, api_key: &str) -> bool {
    let given = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    given.and_then(|value| value.strip_prefix("Bearer ")) == Some(api_key)
}

fn admit(
    shared: &Shared,
    request: &Request<'_>,
    directory: Option<&str>,
    now: Instant,
) -> Result<(), Duration> {
    let limits = shared.tuning().limits.clone();
    let limited = match request.endpoint {
        Endpoint::Users => true,
        Endpoint::User => limits.count_single_users,
        _ => false,
    };
    let directory = directory.filter(|_| limited);
    shared.lock_windows().admit(&limits, directory, now)
}

/// Handles a request that passed the limits: faults, hooks, and the read itself.
async fn respond(
    shared: &Arc<Shared>,
    request: &Request<'_>,
    directory: Option<&str>,
    number: usize,
) -> Answer {
    let faults = shared.tuning().faults.clone();
    let mishap = mishap(&faults, number);
    if let Some(hang) = mishap.hang {
        tokio::time::sleep(hang).await;
        return Answer::failed(504);
    }
    if mishap.error {
        return Answer::failed(500);
    }
    run_hooks(shared, request, Moment::Before).await;
    let sight = Sight {
        when: mishap
            .lag
            .map_or(When::Now, |lag| When::At(shared.clock.now().minus(lag))),
        half: if mishap.cut_short {
            Half::CutShort
        } else if directory.is_some_and(|id| faults.halved.contains(id)) {
            Half::EverySecond
        } else {
            Half::Whole
        },
    };
    let answer = read(shared, request, sight);
    run_hooks(shared, request, Moment::After).await;
    if let Some(slow) = mishap.slow {
        tokio::time::sleep(slow).await;
    }
    answer
}

fn read(shared: &Shared, request: &Request<'_>, sight: Sight) -> Answer {
    let options = shared.tuning().events.clone();
    let world = shared.world();
    match request.endpoint {
        Endpoint::Events => events::answer(world.events(), &options, shared.clock.now(), request.query),
        endpoint => state::answer(&world, sight, endpoint, request.id, request.query),
    }
}

async fn run_hooks(shared: &Shared, request: &Request<'_>, moment: Moment) {
    let actions = shared.lock_hooks().fire(request.endpoint, request.uri, moment);
    for action in actions {
        match action {
            Action::Apply(changes) => {
                for change in changes {
                    let outcome = shared.world().apply(change);
                    if let Err(error) = outcome {
                        shared.script_errors().push(error);
                    }
                }
            }
            Action::Hold { reached, release } => {
                // An error means that the test dropped its end and nobody is waiting.
                let _ = reached.send(());
                let _ = release.await;
            }
        }
    }
}

fn into_response(answer: Answer, shared: &Shared, retry_after: Option<Duration>) -> Response {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = (status, answer.body).into_response();
    let headers = response.headers_mut();
    let mut put = |name: HeaderName, text: &str| {
        if let Ok(value) = HeaderValue::from_str(text) {
            headers.insert(name, value);
        }
    };
    put(header::CONTENT_TYPE, "application/json; charset=utf-8");
    put(header::DATE, &shared.clock.now().http_date());
    if let Some(pause) = retry_after {
        put(header::RETRY_AFTER, &pause.as_secs().max(1).to_string());
    }
    response
}
