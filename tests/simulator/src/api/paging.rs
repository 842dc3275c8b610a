//! WorkOS's cursor paging over ids, in order of creation. A cursor is a position, not an object, and works even when
//! the object that it names is gone. Pure.

use std::collections::BTreeSet;

/// The order of a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Order {
    /// Oldest first.
    Asc,
    /// Newest first: the default.
    #[default]
    Desc,
    /// Newest first, `before` and `after` swapped.
    Normal,
}

/// The part of a list that is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PageQuery {
    pub(crate) limit: usize,
    pub(crate) order: Order,
    pub(crate) after: Option<String>,
    pub(crate) before: Option<String>,
}

/// Part of a list, with the cursors to either side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Page<'a> {
    pub(crate) ids: Vec<&'a str>,
    pub(crate) before: Option<&'a str>,
    pub(crate) after: Option<&'a str>,
}

type Walk<'a> = Box<dyn Iterator<Item = &'a str> + 'a>;

/// The page that `query` asks for, of those `ids` that are `live`.
pub(crate) fn page<'a>(
    ids: &'a BTreeSet<String>,
    query: &PageQuery,
    live: &dyn Fn(&str) -> bool,
) -> Page<'a> {
    let ascending = query.order == Order::Asc;
    let (after, before) = match query.order {
        Order::Normal => (&query.before, &query.after),
        Order::Asc | Order::Desc => (&query.after, &query.before),
    };
    let backwards = before.is_some() && after.is_none();
    let start = if backwards { before } else { after };
    let walk = walk_from(ids, ascending != backwards, start.as_deref());
    let mut found: Vec<&str> = walk.filter(|id| live(id)).take(query.limit + 1).collect();
    let more = found.len() > query.limit;
    found.truncate(query.limit);
    if backwards {
        found.reverse();
    }
    let (first, last) = (found.first().copied(), found.last().copied());
    let any_beyond =
        |from: Option<&'a str>, up: bool| from.is_some_and(|from| walk_from(ids, up, Some(from)).any(&live));
    let has_before = if backwards {
        more
    } else {
        any_beyond(first, !ascending)
    };
    let has_after = if backwards {
        any_beyond(last, ascending)
    } else {
        more
    };
    let (before, after) = (first.filter(|_| has_before), last.filter(|_| has_after));
    let (before, after) = if query.order == Order::Normal {
        (after, before)
    } else {
        (before, after)
    };
    Page {
        ids: found,
        before,
        after,
    }
}

/// The ids strictly beyond `from`, up or down.
fn walk_from<'a>(ids: &'a BTreeSet<String>, up: bool, from: Option<&str>) -> Walk<'a> {
    use std::ops::Bound::{Excluded, Unbounded};
    let bound = from.map_or(Unbounded, Excluded);
    if up {
        Box::new(ids.range::<str, _>((bound, Unbounded)).map(String::as_str))
    } else {
        Box::new(ids.range::<str, _>((Unbounded, bound)).rev().map(String::as_str))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids() -> BTreeSet<String> {
        ["a", "b", "c", "d", "e"].map(String::from).into()
    }

    fn query(limit: usize, order: Order, after: Option<&str>, before: Option<&str>) -> PageQuery {
        let (after, before) = (after.map(str::to_owned), before.map(str::to_owned));
        PageQuery {
            limit,
            order,
            after,
            before,
        }
    }

    #[test]
    fn forwards_and_backwards() {
        let (ids, all) = (ids(), |_: &str| true);
        let first = page(&ids, &query(2, Order::Desc, None, None), &all);
        assert_eq!(
            first,
            Page {
                ids: vec!["e", "d"],
                before: None,
                after: Some("d")
            }
        );
        let second = page(&ids, &query(2, Order::Desc, Some("d"), None), &all);
        assert_eq!(
            second,
            Page {
                ids: vec!["c", "b"],
                before: Some("c"),
                after: Some("b")
            }
        );
        let last = page(&ids, &query(2, Order::Desc, Some("b"), None), &all);
        assert_eq!(
            last,
            Page {
                ids: vec!["a"],
                before: Some("a"),
                after: None
            }
        );
        let back = page(&ids, &query(2, Order::Desc, None, Some("b")), &all);
        assert_eq!(
            back,
            Page {
                ids: vec!["d", "c"],
                before: Some("d"),
                after: Some("c")
            }
        );
        let ascending = page(&ids, &query(3, Order::Asc, Some("a"), None), &all);
        assert_eq!(
            ascending,
            Page {
                ids: vec!["b", "c", "d"],
                before: Some("b"),
                after: Some("d")
            }
        );
        let normal = page(&ids, &query(2, Order::Normal, None, Some("d")), &all);
        assert_eq!(normal.ids, ["c", "b"], "`before` fetches older ones");
        assert_eq!(normal.before, Some("b"));
    }

    #[test]
    fn the_gone_are_passed_over_even_as_cursors() {
        let ids = ids();
        let live = |id: &str| id != "d" && id != "a";
        let second = page(&ids, &query(2, Order::Desc, Some("d"), None), &live);
        assert_eq!(
            second,
            Page {
                ids: vec!["c", "b"],
                before: Some("c"),
                after: None
            }
        );
        assert_eq!(
            page(&ids, &query(2, Order::Desc, Some("a"), None), &live),
            Page::default()
        );
    }
}
