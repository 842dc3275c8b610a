//! Walks a directory to its end: its groups, its users, and who is in which group.

use std::collections::HashSet;

use tokio::sync::oneshot;

use crate::difference::Entity;
use crate::findings::Findings;
use crate::memberships::{Memberships, Way, cheaper};
use crate::report::DirectoryReport;
use crate::snapshot::{Listed, Snapshot};
use crate::store::compared::Comparison;
use crate::store::users;
use crate::work::{Failure, Work, stored};
use crate::workos::pages::List;

/// Reads everything in the directory. With `whole`, appends users and groups as they are read.
pub(crate) async fn walk(
    work: &Work,
    (directory, object): (&str, &str),
    whole: bool,
    findings: &mut Findings,
    report: &mut DirectoryReport,
) -> Result<Snapshot, Failure> {
    let comparison = |entity| Comparison {
        entity,
        directory,
        values: false,
    };
    let list = List::groups(directory);
    let groups = Listed::walk(work, comparison(Entity::Group), list, whole, |_| ()).await?;
    let expected = stored(users::count(&work.pool, directory))
        .await?
        .max(users_told(object));
    let (say, said) = oneshot::channel();
    let walk_users = async {
        let first = |filled| {
            // If nobody receives it, the other side has failed, and so do we.
            let _ = say.send(filled);
        };
        let list = List::users(directory);
        Listed::walk(work, comparison(Entity::User), list, whole, first).await
    };
    // Members are read while users are, unless the users name their groups or must all be known first.
    let members = Work {
        api: work.api.counting(),
        ..work.clone()
    };
    let names: Vec<String> = groups.ids().iter().cloned().collect();
    let walk_members = async {
        if said.await.unwrap_or(true) {
            return Ok(None);
        }
        match cheaper(&members, directory, &groups, expected.max(1)).await? {
            Way::ByGroup => Memberships::by_group(&members, directory, &names).await.map(Some),
            _ => Ok(None),
        }
    };
    let (users, early) = tokio::try_join!(walk_users, walk_members)?;
    let memberships = match early {
        Some(early) => early,
        None => match Memberships::from_field(&members, directory, &users, &groups).await? {
            Some(told) => told,
            None => match cheaper(&members, directory, &groups, users.ids().len()).await? {
                Way::ByGroup => Memberships::by_group(&members, directory, &names).await?,
                Way::ByUser => Memberships::by_user(&members, directory, &users).await?,
                Way::NoGroups | Way::Field => Memberships::none(users.at()),
            },
        },
    };
    findings.unreadable += users.unreadable() + groups.unreadable();
    report.users = users.ids().len();
    report.groups = groups.ids().len();
    report.memberships = memberships.members().values().map(HashSet::len).sum();
    report.memberships_read = Some(memberships.way());
    report.membership_requests = members.api.requests();
    work.api.add_requests(members.api.requests());
    Ok(Snapshot {
        users,
        groups,
        memberships,
    })
}

/// How many users the directory says it has.
fn users_told(directory: &str) -> usize {
    let told = || -> Option<usize> {
        let directory: serde_json::Value = serde_json::from_str(directory).ok()?;
        let users = directory.pointer("/metadata/users")?;
        let count = |state: &str| users[state].as_u64().unwrap_or_default();
        usize::try_from(count("active") + count("inactive")).ok()
    };
    told().unwrap_or_default()
}
