//! The laws that the whole system rests on: merging observations is commutative, associative and idempotent. So a
//! history folds to the same picture in any order, with any duplication and in any grouping.

#![allow(clippy::unwrap_used, reason = "a test")]

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use schema::event::Event;
use schema::ids::{DirectoryId, EventId};
use schema::observation::{Cause, Mark, Registers, Version, Versioned};
use schema::observe::observe;
use schema::picture::Picture;
use schema::record::Source;
use schema::timestamp::Timestamp;

/// Few values for each field, so that ties are frequent.
fn cause() -> impl Strategy<Value = Cause<'static>> {
    (
        select(vec!["e1", "e2"]),
        select(vec![Source::Webhook, Source::EventsApi, Source::Sweep]),
    )
        .prop_map(|(event, source)| Cause {
            event: EventId::new(event).expect("an id"),
            source,
        })
}

fn mark() -> impl Strategy<Value = Option<Mark<'static>>> {
    prop::option::of((0..3_i64, cause()).prop_map(|(at, cause)| Mark {
        at: Timestamp::from_micros(at),
        cause,
    }))
}

fn registers() -> impl Strategy<Value = Registers<'static, i64>> {
    let version =
        (0..3_i64, 0..3_i64, cause(), 0..3_i64).prop_map(|(updated_at, observed_at, cause, digest)| {
            Versioned {
                version: Version {
                    updated_at: Timestamp::from_micros(updated_at),
                    observed_at: Timestamp::from_micros(observed_at),
                    cause,
                    digest,
                },
                // Equal digests mean equal content, as in production.
                attributes: digest,
            }
        });
    (
        select(vec!["d1", "d2"]),
        prop::option::of(select(vec!["org_1", "org_2"])),
        prop::option::of(version),
        mark(),
        mark(),
    )
        .prop_map(|(directory, organization, attributes, seen, gone)| Registers {
            directory: DirectoryId::new(directory).expect("an id"),
            organization: organization.map(Into::into),
            attributes,
            seen,
            gone,
        })
}

fn merged(a: &Registers<'static, i64>, b: &Registers<'static, i64>) -> Registers<'static, i64> {
    let mut a = a.clone();
    a.merge(b.clone());
    a
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(4_000) })]

    #[test]
    fn merge_is_commutative(a in registers(), b in registers()) {
        prop_assert_eq!(merged(&a, &b), merged(&b, &a));
    }

    #[test]
    fn merge_is_associative(a in registers(), b in registers(), c in registers()) {
        prop_assert_eq!(merged(&merged(&a, &b), &c), merged(&a, &merged(&b, &c)));
    }

    #[test]
    fn merge_is_idempotent(a in registers(), b in registers()) {
        let once = merged(&a, &b);
        prop_assert_eq!(&merged(&once, &b), &once);
        prop_assert_eq!(&merged(&once, &a), &once);
    }
}

/// An event in a small world where everything happens to the same few objects at the same few times.
fn event() -> impl Strategy<Value = String> {
    let kind = select(vec![
        "dsync.activated",
        "dsync.deactivated",
        "dsync.deleted",
        "dsync.user.created",
        "dsync.user.updated",
        "dsync.user.deleted",
        "dsync.group.created",
        "dsync.group.updated",
        "dsync.group.deleted",
        "dsync.group.user_added",
        "dsync.group.user_removed",
        "dsync.token.created",
        "dsync.something.new",
    ]);
    (kind, 0..1_000_u32, 0..6_u32, 0..6_u32, 1..3_u32, 1..3_u32, select(vec!["active", "inactive"])).prop_map(
        |(kind, id, created, updated, user, group, state)| {
            let moment = |second: u32| format!("2024-01-01T00:00:0{second}.000Z");
            let (created, updated) = (moment(created), moment(updated));
            let object = |id: String| {
                format!(
                    r#"{{"id":"{id}","directory_id":"d1","organization_id":"org_{group}","name":"{id}-{updated}",
                        "state":"{state}","updated_at":"{updated}"}}"#
                )
            };
            let data = match kind {
                "dsync.group.user_added" | "dsync.group.user_removed" => format!(
                    r#"{{"directory_id":"d1","user":{},"group":{}}}"#,
                    object(format!("u{user}")),
                    object(format!("g{group}"))
                ),
                kind if kind.contains(".user.") => object(format!("u{user}")),
                kind if kind.contains(".group.") => object(format!("g{group}")),
                _ => object("d1".to_owned()),
            };
            format!(r#"{{"id":"event_{id}","event":"{kind}","created_at":"{created}","data":{data}}}"#)
        },
    )
}

fn folded<'a>(bodies: impl IntoIterator<Item = &'a String>) -> Picture<'a> {
    let mut picture = Picture::default();
    for body in bodies {
        let event = Event::parse(body).expect("an event");
        for observation in
            observe(&event, Source::Webhook, Timestamp::from_micros(0)).expect("a readable event")
        {
            picture.add(observation);
        }
    }
    picture
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    #[test]
    fn any_order_with_any_duplication_folds_to_the_same(
        history in vec(event(), 1..40),
        order in vec(any::<prop::sample::Index>(), 0..120),
    ) {
        let expected = folded(&history);
        // Every event at least once (in reverse), and any of them again in any order.
        let again = order.iter().map(|index| &history[index.index(history.len())]);
        let shuffled = folded(again.chain(history.iter().rev()));
        prop_assert_eq!(expected, shuffled);
    }
}
