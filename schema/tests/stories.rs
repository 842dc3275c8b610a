//! What webhook handlers in the wild get wrong, one story each: a few events in every possible order, and what readers
//! must see.

#![allow(clippy::unwrap_used, reason = "a test")]

use schema::event::Event;
use schema::ids::{DirectoryId, GroupId, UserId};
use schema::observe::observe;
use schema::picture::Picture;
use schema::record::Source;
use schema::timestamp::Timestamp;

/// An event at second `at`. The objects in `data` have an `updated_at` of their own.
#[derive(Clone)]
struct Told {
    kind: &'static str,
    at: u32,
    data: String,
    source: Source,
}

fn moment(second: u32) -> String {
    format!("2024-01-01T00:00:{second:02}.000Z")
}

fn user(id: &str, updated: u32, more: &str) -> String {
    format!(
        r#"{{"id":"{id}","directory_id":"d1","state":"active","updated_at":"{}"{more}}}"#,
        moment(updated)
    )
}

fn group(id: &str, updated: u32) -> String {
    format!(
        r#"{{"id":"{id}","directory_id":"d1","updated_at":"{}"}}"#,
        moment(updated)
    )
}

fn directory(updated: u32, state: &str) -> String {
    format!(
        r#"{{"id":"d1","state":"{state}","updated_at":"{}"}}"#,
        moment(updated)
    )
}

fn pair(user: &str, group: &str) -> String {
    format!(r#"{{"directory_id":"d1","user":{user},"group":{group}}}"#)
}

fn told(kind: &'static str, at: u32, data: String) -> Told {
    let source = if kind.starts_with("sweep.") {
        Source::Sweep
    } else {
        Source::Webhook
    };
    Told {
        kind,
        at,
        data,
        source,
    }
}

/// Folds the story in every order (there are at most a few hundred) and passes each picture to `check`.
fn in_every_order(story: &[Told], check: impl Fn(&Picture<'_>)) {
    let bodies: Vec<(String, Source)> = story
        .iter()
        .enumerate()
        .map(|(place, told)| {
            let Told {
                kind,
                at,
                data,
                source,
            } = told;
            let body = format!(
                r#"{{"id":"event_{place}","event":"{kind}","created_at":"{}","data":{data}}}"#,
                moment(*at)
            );
            (body, *source)
        })
        .collect();
    for order in permutations(bodies.len()) {
        let mut picture = Picture::default();
        for place in order {
            let (body, source) = &bodies[place];
            let event = Event::parse(body).unwrap();
            for observation in observe(&event, *source, Timestamp::parse(&moment(20)).unwrap()).unwrap() {
                picture.add(observation);
            }
        }
        check(&picture);
    }
}

fn permutations(n: usize) -> Vec<Vec<usize>> {
    if n == 0 {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for shorter in permutations(n - 1) {
        for place in 0..n {
            let mut longer = shorter.clone();
            longer.insert(place, n - 1);
            all.push(longer);
        }
    }
    all
}

fn is_user(picture: &Picture<'_>, id: &str) -> bool {
    picture.user_is_live(&UserId::new(id.to_owned()).unwrap())
}

fn is_member(picture: &Picture<'_>, group: &str, user: &str) -> bool {
    picture.membership_is_live(
        &GroupId::new(group.to_owned()).unwrap(),
        &UserId::new(user.to_owned()).unwrap(),
    )
}

fn state(picture: &Picture<'_>, id: &str) -> Option<String> {
    let user = picture.users.get(&UserId::new(id.to_owned()).unwrap())?;
    user.attributes
        .as_ref()?
        .attributes
        .state
        .as_deref()
        .map(str::to_owned)
}

#[test]
fn leaving_one_of_two_groups_leaves_the_other() {
    let story = [
        told("dsync.user.created", 1, user("u1", 1, "")),
        told(
            "dsync.group.user_added",
            2,
            pair(&user("u1", 1, ""), &group("g1", 1)),
        ),
        told(
            "dsync.group.user_added",
            3,
            pair(&user("u1", 1, ""), &group("g2", 1)),
        ),
        told(
            "dsync.group.user_removed",
            4,
            pair(&user("u1", 1, ""), &group("g1", 1)),
        ),
    ];
    in_every_order(&story, |picture| {
        assert!(is_user(picture, "u1") && is_member(picture, "g2", "u1") && !is_member(picture, "g1", "u1"));
    });
}

#[test]
fn a_deleted_group_takes_its_memberships_and_a_late_removal_is_harmless() {
    let story = [
        told(
            "dsync.group.user_added",
            2,
            pair(&user("u1", 1, ""), &group("g1", 1)),
        ),
        told("dsync.group.deleted", 3, group("g1", 1)),
        told(
            "dsync.group.user_removed",
            4,
            pair(&user("u1", 1, ""), &group("g1", 1)),
        ),
    ];
    in_every_order(&story, |picture| {
        assert!(is_user(picture, "u1") && !is_member(picture, "g1", "u1"));
        assert!(!picture.group_is_live(&GroupId::new("g1").unwrap()));
    });
}

#[test]
fn inactive_is_a_state_and_stays_one() {
    let story = [
        told("dsync.user.created", 1, user("u1", 1, "")),
        told("dsync.user.updated", 5, user("u1", 5, r#","state":"inactive""#)),
        told("dsync.user.updated", 3, user("u1", 3, "")),
    ];
    in_every_order(&story, |picture| {
        assert_eq!(state(picture, "u1").as_deref(), Some("inactive"));
        assert!(is_user(picture, "u1"));
    });
}

#[test]
fn a_late_membership_event_cannot_bring_back_a_deleted_user() {
    let story = [
        told("dsync.user.created", 1, user("u1", 1, "")),
        told("dsync.user.deleted", 5, user("u1", 1, "")),
        told(
            "dsync.group.user_added",
            4,
            pair(&user("u1", 1, ""), &group("g1", 1)),
        ),
        told(
            "dsync.group.user_removed",
            6,
            pair(&user("u1", 1, ""), &group("g1", 1)),
        ),
        // A membership event, later than the deletion, whose embedded user has no time at all.
        told(
            "dsync.group.user_added",
            9,
            pair(r#"{"id":"u1","directory_id":"d1"}"#, &group("g1", 1)),
        ),
    ];
    in_every_order(&story, |picture| {
        assert!(!is_user(picture, "u1") && !is_member(picture, "g1", "u1"));
    });
}

#[test]
fn a_deleted_directory_takes_all_with_it() {
    let story = [
        told("dsync.activated", 1, directory(1, "active")),
        told("dsync.user.created", 2, user("u1", 2, "")),
        told(
            "dsync.group.user_added",
            3,
            pair(&user("u1", 2, ""), &group("g1", 2)),
        ),
        told("dsync.deleted", 4, directory(1, "deleting")),
    ];
    in_every_order(&story, |picture| {
        assert!(!picture.directory_is_live(&DirectoryId::new("d1").unwrap()));
        assert!(!is_user(picture, "u1") && !is_member(picture, "g1", "u1"));
    });
}

#[test]
fn what_a_directory_held_does_not_come_back_with_it() {
    let story = [
        told("dsync.activated", 1, directory(1, "active")),
        told("dsync.user.created", 2, user("u1", 2, "")),
        told("dsync.deleted", 4, directory(1, "deleting")),
        told("dsync.activated", 6, directory(6, "active")),
        told("dsync.user.created", 7, user("u2", 7, "")),
    ];
    in_every_order(&story, |picture| {
        assert!(picture.directory_is_live(&DirectoryId::new("d1").unwrap()));
        assert!(!is_user(picture, "u1") && is_user(picture, "u2"));
    });
}

#[test]
fn a_returning_user_is_there_and_its_memberships_are_void_until_seen_again() {
    let mut story = vec![
        told("dsync.user.created", 1, user("u1", 1, "")),
        told(
            "dsync.group.user_added",
            2,
            pair(&user("u1", 1, ""), &group("g1", 1)),
        ),
        told("dsync.user.deleted", 3, user("u1", 1, "")),
        told("dsync.user.updated", 5, user("u1", 5, "")),
    ];
    in_every_order(&story, |picture| {
        assert!(is_user(picture, "u1") && !is_member(picture, "g1", "u1"));
    });
    story.push(told(
        "sweep.membership.listed",
        7,
        pair(r#"{"id":"u1"}"#, r#"{"id":"g1"}"#),
    ));
    in_every_order(&story, |picture| assert!(is_member(picture, "g1", "u1")));
}

#[test]
fn a_stale_deletion_does_not_erase_what_is_newer() {
    let story = [
        told("dsync.user.deleted", 2, user("u1", 1, "")),
        told("dsync.user.created", 3, user("u1", 3, "")),
        told(
            "dsync.group.user_added",
            4,
            pair(&user("u1", 3, ""), &group("g1", 1)),
        ),
    ];
    in_every_order(&story, |picture| {
        assert!(is_user(picture, "u1") && is_member(picture, "g1", "u1"));
    });
}

#[test]
fn in_doubt_it_is_gone() {
    let story = [
        told("dsync.user.created", 3, user("u1", 3, "")),
        told("dsync.user.deleted", 3, user("u1", 3, "")),
        told(
            "dsync.group.user_added",
            4,
            pair(&user("u2", 1, ""), &group("g1", 1)),
        ),
        told(
            "dsync.group.user_removed",
            4,
            pair(&user("u2", 1, ""), &group("g1", 1)),
        ),
    ];
    in_every_order(&story, |picture| {
        assert!(!is_user(picture, "u1") && !is_member(picture, "g1", "u2"));
    });
}

#[test]
fn of_two_events_in_one_millisecond_neither_is_dropped() {
    let story = [
        told("dsync.user.updated", 3, user("u1", 3, r#","first_name":"first""#)),
        told(
            "dsync.user.updated",
            3,
            user("u1", 3, r#","first_name":"second""#),
        ),
        told(
            "dsync.group.user_added",
            3,
            pair(&user("u1", 3, r#","first_name":"first""#), &group("g1", 1)),
        ),
    ];
    let mut names = std::collections::BTreeSet::new();
    in_every_order(&story, |picture| assert!(is_member(picture, "g1", "u1")));
    // Which of the two wins is arbitrary, but it is always the same one.
    let names = std::cell::RefCell::new(&mut names);
    in_every_order(&story, |picture| {
        let user = &picture.users[&UserId::new("u1").unwrap()];
        let name = user
            .attributes
            .as_ref()
            .unwrap()
            .attributes
            .first_name
            .clone()
            .unwrap();
        names.borrow_mut().insert(name.into_owned());
    });
    assert_eq!(names.borrow().len(), 1);
}

#[test]
fn a_role_that_changes_without_updated_at_is_taken_from_the_later_event() {
    let story = [
        told(
            "dsync.user.created",
            1,
            user("u1", 1, r#","role":{"slug":"admin"}"#),
        ),
        told(
            "dsync.group.user_removed",
            5,
            pair(&user("u1", 1, r#","role":{"slug":"member"}"#), &group("g1", 1)),
        ),
        told(
            "dsync.group.user_added",
            3,
            pair(&user("u1", 1, r#","role":{"slug":"admin"}"#), &group("g1", 1)),
        ),
    ];
    in_every_order(&story, |picture| {
        let user = &picture.users[&UserId::new("u1").unwrap()];
        assert_eq!(
            user.attributes.as_ref().unwrap().attributes.role.as_deref(),
            Some("member")
        );
    });
}

#[test]
fn the_same_person_under_a_new_id_is_another_user() {
    let same = r#","idp_id":"idp-1","email":"same@example.com""#;
    let story = [
        told("dsync.user.created", 1, user("u1", 1, same)),
        told("dsync.user.deleted", 3, user("u1", 1, same)),
        told("dsync.user.created", 5, user("u2", 5, same)),
        told("dsync.user.updated", 6, user("u2", 6, same)),
    ];
    in_every_order(&story, |picture| {
        assert!(!is_user(picture, "u1") && is_user(picture, "u2"));
    });
}

#[test]
fn a_sweep_in_flight_cannot_resurrect_what_an_event_just_removed() {
    // The sweep's time is second 4 (when it read, less the margin). The removal happened at second 5.
    let story = [
        told("dsync.user.created", 1, user("u1", 1, "")),
        told("sweep.user.listed", 4, user("u1", 1, "")),
        told("dsync.user.deleted", 5, user("u1", 1, "")),
        // Nor can a sweep that read before the user was created remove it.
        told(
            "sweep.user.missing",
            0,
            r#"{"id":"u2","directory_id":"d1"}"#.to_owned(),
        ),
        told("dsync.user.created", 2, user("u2", 2, "")),
    ];
    in_every_order(&story, |picture| {
        assert!(!is_user(picture, "u1") && is_user(picture, "u2"));
    });
}

#[test]
fn what_a_sweep_sees_again_is_there_again_though_its_updated_at_never_moved() {
    let story = [
        told("dsync.user.created", 1, user("u1", 1, "")),
        told("dsync.user.deleted", 3, user("u1", 1, "")),
        told("dsync.user.updated", 5, user("u1", 1, "")),
        told("sweep.user.listed", 7, user("u1", 1, "")),
    ];
    in_every_order(&story[..3], |picture| assert!(!is_user(picture, "u1")));
    in_every_order(&story, |picture| assert!(is_user(picture, "u1")));
}

#[test]
fn an_updated_at_in_the_future_cannot_keep_access() {
    let story = [
        told("dsync.user.created", 1, user("u1", 59, "")),
        told("dsync.user.deleted", 5, user("u1", 59, "")),
        told("dsync.user.created", 1, user("u2", 59, "")),
        told("dsync.user.updated", 6, user("u2", 6, r#","state":"inactive""#)),
    ];
    in_every_order(&story, |picture| {
        assert!(!is_user(picture, "u1"));
        assert_eq!(state(picture, "u2").as_deref(), Some("inactive"));
    });
}

#[test]
fn what_a_sweep_read_is_not_undone_by_an_older_version_that_comes_late() {
    // Read at second 20, but dated second 0. The object was updated in between.
    let story = [
        told("sweep.user.listed", 0, user("u1", 15, r#","state":"inactive""#)),
        told("dsync.user.updated", 9, user("u1", 9, "")),
    ];
    in_every_order(&story, |picture| {
        assert_eq!(state(picture, "u1").as_deref(), Some("inactive"));
    });
}

#[test]
fn events_of_what_we_do_not_know_change_nothing() {
    let story = [
        told("dsync.user.created", 1, user("u1", 1, "")),
        told("dsync.user.merged", 2, user("u1", 2, r#","state":"inactive""#)),
        told("dsync.token.revoked", 3, r#"{"directory_id":"d1"}"#.to_owned()),
    ];
    in_every_order(&story, |picture| {
        assert_eq!(state(picture, "u1").as_deref(), Some("active"));
    });
}
