//! The state endpoints: lists and single reads of directories, users and groups. Pure functions of the world and a
//! moment.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    answer::Answer,
    call::{Endpoint, Query},
    faults::Half,
    paging::{Page, page},
};
use crate::{model::User, render, versioned::When, world::World};

/// What one request sees of the world: as of when, and how completely.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sight {
    pub(crate) when: When,
    pub(crate) half: Half,
}

/// Answers any endpoint but `/events`.
pub(crate) fn answer(world: &World, sight: Sight, endpoint: Endpoint, id: &str, query: &Query) -> Answer {
    let result = match endpoint {
        Endpoint::Directories => directories(world, sight, query),
        Endpoint::Users => users(world, sight, query),
        Endpoint::Groups => groups(world, sight, query),
        Endpoint::Directory => one(directory_json(world, id, sight.when), "Directory", id),
        Endpoint::User => one(user_json(world, id, sight.when), "Directory User", id),
        Endpoint::Group => one(group_json(world, id, sight.when), "Directory Group", id),
        Endpoint::Events | Endpoint::Other => Err(Answer::not_found("Page", id)),
    };
    result.unwrap_or_else(|refusal| refusal)
}

fn one(found: Option<Value>, thing: &str, id: &str) -> Result<Answer, Answer> {
    let object = found.ok_or_else(|| Answer::not_found(thing, id))?;
    Ok(Answer::json(200, &object))
}

fn directories(world: &World, sight: Sight, query: &Query) -> Result<Answer, Answer> {
    let organization = query.get("organization_id");
    let search = query.get("search").map(str::to_lowercase);
    let live = |id: &str| {
        world.directory_at(id, sight.when).is_some_and(|directory| {
            organization.is_none_or(|wanted| directory.organization.as_deref() == Some(wanted))
                && search
                    .as_ref()
                    .is_none_or(|text| directory.name.to_lowercase().contains(text))
        })
    };
    list(&world.directory_ids, sight, query, &live, &|id| {
        directory_json(world, id, sight.when)
    })
}

fn users(world: &World, sight: Sight, query: &Query) -> Result<Answer, Answer> {
    let (directory, group) = (query.get("directory"), query.get("group"));
    check_directory(world, sight, directory)?;
    if let Some(id) = group {
        world
            .group_at(id, sight.when)
            .ok_or_else(|| Answer::not_found("Directory Group", id))?;
    }
    let ids = match (group, directory) {
        (Some(group), _) => world.users_of_group.get(group),
        (None, Some(directory)) => world.users_of_directory.get(directory),
        (None, None) => {
            return Err(Answer::unprocessable(
                "directory",
                "directory or group is required",
            ));
        }
    };
    let matches = |user: &User| {
        directory.is_none_or(|wanted| user.directory == wanted)
            && query
                .get("idp_id")
                .is_none_or(|wanted| user.profile.idp_id.as_deref() == Some(wanted))
            && query
                .get("email")
                .is_none_or(|wanted| user.profile.email.as_deref() == Some(wanted))
    };
    let live = |id: &str| {
        world.user_at(id, sight.when).is_some_and(|user| matches(user))
            && group.is_none_or(|group| world.is_member(group, id, sight.when))
    };
    let ids = ids.unwrap_or(const { &BTreeSet::new() });
    list(ids, sight, query, &live, &|id| user_json(world, id, sight.when))
}

fn groups(world: &World, sight: Sight, query: &Query) -> Result<Answer, Answer> {
    let (directory, user) = (query.get("directory"), query.get("user"));
    check_directory(world, sight, directory)?;
    if let Some(id) = user {
        world
            .user_at(id, sight.when)
            .ok_or_else(|| Answer::not_found("Directory User", id))?;
    }
    let ids = match (user, directory) {
        (Some(user), _) => world.groups_of_user.get(user),
        (None, Some(directory)) => world.groups_of_directory.get(directory),
        (None, None) => {
            return Err(Answer::unprocessable(
                "directory",
                "directory or user is required",
            ));
        }
    };
    let live = |id: &str| {
        world
            .group_at(id, sight.when)
            .is_some_and(|group| directory.is_none_or(|wanted| group.directory == wanted))
            && user.is_none_or(|user| world.is_member(id, user, sight.when))
    };
    let ids = ids.unwrap_or(const { &BTreeSet::new() });
    list(ids, sight, query, &live, &|id| group_json(world, id, sight.when))
}

fn check_directory(world: &World, sight: Sight, id: Option<&str>) -> Result<(), Answer> {
    match id {
        Some(id) if world.directory_at(id, sight.when).is_none() => Err(Answer::not_found("Directory", id)),
        _ => Ok(()),
    }
}

fn list(
    ids: &BTreeSet<String>,
    sight: Sight,
    query: &Query,
    live: &dyn Fn(&str) -> bool,
    render: &dyn Fn(&str) -> Option<Value>,
) -> Result<Answer, Answer> {
    let wanted = query.page()?;
    let seen = |id: &str| live(id) && sight.half.shows(id);
    let mut found: Page<'_> = page(ids, &wanted, &seen);
    if sight.half == Half::CutShort {
        found.ids.truncate(found.ids.len() / 2);
        found.after = None;
    }
    let data: Vec<Value> = found.ids.iter().filter_map(|id| render(id)).collect();
    Ok(Answer::list(&data, &found))
}

fn directory_json(world: &World, id: &str, when: When) -> Option<Value> {
    let directory = world.directory_at(id, when)?;
    let active = |user: &&std::sync::Arc<User>| user.profile.state.as_deref() == Some("active");
    let all = world.live_users(id, when).count();
    let active = world.live_users(id, when).filter(active).count();
    let groups = world.live_groups(id, when).count();
    Some(render::directory_in_api(
        directory,
        (active, all - active),
        groups,
    ))
}

/// A user with `groups`: all of them, or none if the team is too new for that field.
fn user_json(world: &World, id: &str, when: When) -> Option<Value> {
    let user = world.user_at(id, when)?;
    let directory = world.directory_at(&user.directory, when)?;
    let mut object = world.render_user(user, directory, when);
    let filled = directory.options.groups_field;
    let groups = world.groups_with(id, when).filter(|_| filled);
    object["groups"] = groups.map(|group| render::group(group, directory)).collect();
    Some(object)
}

fn group_json(world: &World, id: &str, when: When) -> Option<Value> {
    let group = world.group_at(id, when)?;
    let directory = world.directory_at(&group.directory, when)?;
    Some(render::group(group, directory))
}
