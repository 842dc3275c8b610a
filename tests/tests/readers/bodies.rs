//! Events as WorkOS writes them, about a user `u…` and a group `g1` in a directory `d1`.

use serde_json::{Value, json};

/// The moment at a second of the one minute in which all of it happens.
pub(super) fn moment(second: u32) -> String {
    format!("2026-01-01T00:00:{second:02}.000Z")
}

/// An event, told at `second`.
pub(super) fn event(id: &str, kind: &str, second: u32, data: Value) -> Value {
    json!({"id": id, "event": kind, "created_at": moment(second), "data": data})
}

/// A user as of `second`, with `more` members or others.
pub(super) fn user(id: &str, second: u32, more: Value) -> Value {
    let mut user = json!({
        "id": id, "directory_id": "d1", "organization_id": "org_1", "state": "active", "email": "ann@example.com",
        "updated_at": moment(second)
    });
    user.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    user
}

/// The event `id` that says that `user` joined or left the group.
pub(super) fn membership(id: &str, kind: &str, second: u32, user: Value) -> Value {
    let group = json!({"id": "g1", "directory_id": "d1", "organization_id": "org_1", "name": "Staff", "updated_at": moment(1)});
    event(
        id,
        kind,
        second,
        json!({"directory_id": "d1", "user": user, "group": group}),
    )
}
