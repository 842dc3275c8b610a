//! A few endpoints under `/_sim/`, for use with curl. They are not part of WorkOS and need no key, because by default
//! the simulator listens on this machine only.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, Serialize, de::Error as _};
use serde_json::{Value, json};

use crate::{
    change::{Change, ChangeError, Outcome},
    history::Seed,
    shared::Shared,
    world::World,
};

pub(crate) fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/changes", post(changes))
        .route("/truth", get(truth))
        .route("/events", get(events))
        .route("/stats", get(stats))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BurstOrder {
    burst: usize,
    #[serde(default)]
    directories: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SeedOrder {
    seed: Seed,
    directory: String,
}

enum Order {
    Burst(BurstOrder),
    Seed(SeedOrder),
    Change(Box<Change>),
}

impl Order {
    /// Chooses by the field present. An untagged enum's error would not say what is wrong with a change.
    fn parse(body: Value) -> Result<Self, serde_json::Error> {
        if body.get("burst").is_some() {
            serde_json::from_value(body).map(Self::Burst)
        } else if body.get("seed").is_some() {
            serde_json::from_value(body).map(Self::Seed)
        } else if body.get("change").is_some() {
            serde_json::from_value(body).map(Box::new).map(Self::Change)
        } else {
            Err(serde_json::Error::custom(
                "expected one of `change`, `burst` and `seed`",
            ))
        }
    }

    fn carry_out(self, world: &mut World) -> Result<Outcome, ChangeError> {
        let before = world.events().len();
        match self {
            Self::Change(change) => return world.apply(*change),
            Self::Burst(order) => world.burst(&order.directories, order.burst)?,
            Self::Seed(order) => drop(world.seed(&order.directory, &order.seed)?),
        }
        let events = world.events()[before..]
            .iter()
            .map(|event| event.id.clone())
            .collect();
        Ok(Outcome {
            created: None,
            events,
        })
    }
}

async fn changes(State(shared): State<Arc<Shared>>, Json(body): Json<Value>) -> Response {
    let order = match Order::parse(body) {
        Ok(order) => order,
        Err(error) => return refuse(&error.to_string()),
    };
    let outcome = order.carry_out(&mut shared.world());
    match outcome {
        Ok(outcome) => Json(outcome).into_response(),
        Err(error) => refuse(&error.to_string()),
    }
}

fn refuse(message: &str) -> Response {
    (
        StatusCode::UNPROCESSABLE_ENTITY,
        Json(json!({ "error": message })),
    )
        .into_response()
}

async fn truth(State(shared): State<Arc<Shared>>) -> Response {
    let truth = shared.world().truth();
    Json(truth).into_response()
}

/// All events, oldest first.
async fn events(State(shared): State<Arc<Shared>>) -> Response {
    let bodies: Vec<Value> = shared.world().events().iter().map(crate::Event::json).collect();
    Json(bodies).into_response()
}

#[derive(Serialize)]
struct Stats {
    now: String,
    events: usize,
    directories: usize,
    users: usize,
    groups: usize,
    memberships: usize,
    requests: crate::RequestCounts,
}

async fn stats(State(shared): State<Arc<Shared>>) -> Response {
    let (counts, events) = {
        let world = shared.world();
        (world.counts(), world.events().len())
    };
    let [directories, users, groups, memberships] = counts;
    let requests = shared.lock_record().counts();
    let now = shared.clock.now().rfc3339();
    Json(Stats {
        now,
        events,
        directories,
        users,
        groups,
        memberships,
        requests,
    })
    .into_response()
}
