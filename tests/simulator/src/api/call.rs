//! Parses the path and query of a request to the API. Pure.

use serde::{Deserialize, Serialize};

use super::{
    answer::Answer,
    paging::{Order, PageQuery},
};
use crate::clock::Millis;

/// An endpoint of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Endpoint {
    /// `GET /directories`
    Directories,
    /// `GET /directories/{id}`
    Directory,
    /// `GET /directory_users`
    Users,
    /// `GET /directory_users/{id}`
    User,
    /// `GET /directory_groups`
    Groups,
    /// `GET /directory_groups/{id}`
    Group,
    /// `GET /events`
    Events,
    /// Anything else.
    Other,
}

/// The endpoint that a path names, and the id in it.
pub(crate) fn endpoint(path: &str) -> (Endpoint, &str) {
    let mut parts = path.trim_matches('/').splitn(2, '/');
    let (collection, id) = (parts.next().unwrap_or_default(), parts.next());
    let found = match (collection, id.is_some()) {
        ("directories", false) => Endpoint::Directories,
        ("directories", true) => Endpoint::Directory,
        ("directory_users", false) => Endpoint::Users,
        ("directory_users", true) => Endpoint::User,
        ("directory_groups", false) => Endpoint::Groups,
        ("directory_groups", true) => Endpoint::Group,
        ("events", false) => Endpoint::Events,
        _ => Endpoint::Other,
    };
    (found, id.unwrap_or_default())
}

/// The query's pairs, decoded, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query(pub(crate) Vec<(String, String)>);

impl Query {
    /// The first non-empty value with that name.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let mut values = self
            .0
            .iter()
            .filter(|(key, value)| key == name && !value.is_empty());
        values.next().map(|(_, value)| value.as_str())
    }

    /// The part of a list that is asked for.
    pub(crate) fn page(&self) -> Result<PageQuery, Answer> {
        let limit = match self.get("limit") {
            None => 10,
            Some(text) => {
                let limit = text.parse().ok().filter(|limit| (1..=100).contains(limit));
                limit.ok_or_else(|| Answer::unprocessable("limit", "limit must be between 1 and 100"))?
            }
        };
        let order = match self.get("order") {
            None | Some("desc") => Order::Desc,
            Some("asc") => Order::Asc,
            Some("normal") => Order::Normal,
            Some(_) => {
                return Err(Answer::unprocessable(
                    "order",
                    "order must be normal, desc or asc",
                ));
            }
        };
        let cursor = |name| self.get(name).map(str::to_owned);
        Ok(PageQuery {
            limit,
            order,
            after: cursor("after"),
            before: cursor("before"),
        })
    }

    /// The event types that are asked for, as `events[]=a&events[]=b`, `events=a&events=b` or `events=a,b`.
    pub(crate) fn event_types(&self) -> Vec<&str> {
        let values = self
            .0
            .iter()
            .filter(|(key, _)| key == "events" || key.starts_with("events["));
        values
            .flat_map(|(_, value)| value.split(','))
            .map(str::trim)
            .filter(|kind| !kind.is_empty())
            .collect()
    }

    /// A moment, in the `Z` form of RFC 3339 only.
    pub(crate) fn moment(&self, name: &str) -> Result<Option<Millis>, Answer> {
        let Some(text) = self.get(name) else {
            return Ok(None);
        };
        let parsed = Millis::parse_zulu(text);
        let refused = || Answer::bad_request(&format!("{name} must be an ISO-8601 date string ending in Z"));
        parsed.ok_or_else(refused).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(pairs: &[(&str, &str)]) -> Query {
        Query(
            pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        )
    }

    #[test]
    fn every_way_to_name_event_types() {
        for pairs in [
            &[("events[]", "a"), ("events[]", "b")][..],
            &[("events[0]", "a"), ("events[1]", "b")],
            &[("events", "a"), ("events", "b")],
            &[("events", "a,b")],
        ] {
            assert_eq!(query(pairs).event_types(), ["a", "b"]);
        }
    }

    #[test]
    fn limits_are_one_to_a_hundred() {
        assert_eq!(query(&[]).page().unwrap().limit, 10);
        assert_eq!(query(&[("limit", "100")]).page().unwrap().limit, 100);
        for bad in ["0", "101", "-1", "ten"] {
            assert!(query(&[("limit", bad)]).page().is_err(), "{bad}");
        }
    }

    #[test]
    fn paths() {
        assert_eq!(endpoint("/directory_users"), (Endpoint::Users, ""));
        assert_eq!(
            endpoint("/directory_users/directory_user_01"),
            (Endpoint::User, "directory_user_01")
        );
        assert_eq!(endpoint("/organizations").0, Endpoint::Other);
    }
}
