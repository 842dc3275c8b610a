//! Walks lists to their end. A walk that does not get there ends in an error, and the caller discards what it returned.

use std::collections::HashSet;

use schema::json;
use schema::timestamp::Timestamp;

use super::answer::Page;
use super::client::{Api, ApiError, Ask, Endpoint};

/// Objects per page, the most that `WorkOS` gives.
pub const PAGE: usize = 100;
/// How many cursors are tried when one is refused, because the object that it names may be gone.
const CURSORS: usize = 5;

/// What to list.
#[derive(Clone, Debug)]
pub struct List<'a> {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// The query parameters that narrow it.
    pub filter: Vec<(&'a str, String)>,
    /// The directory, for its rate limit.
    pub directory: Option<&'a str>,
}

impl<'a> List<'a> {
    /// Every directory.
    pub fn directories() -> Self {
        Self {
            endpoint: Endpoint::Directories,
            filter: Vec::new(),
            directory: None,
        }
    }

    /// The users of a directory.
    pub fn users(directory: &'a str) -> Self {
        Self::of(Endpoint::Users, "directory", directory, directory)
    }

    /// The groups of a directory.
    pub fn groups(directory: &'a str) -> Self {
        Self::of(Endpoint::Groups, "directory", directory, directory)
    }

    /// The members of a group.
    pub fn members(directory: &'a str, group: &str) -> Self {
        Self::of(Endpoint::Users, "group", group, directory)
    }

    /// The groups a user is in.
    pub fn groups_of(directory: &'a str, user: &str) -> Self {
        Self::of(Endpoint::Groups, "user", user, directory)
    }

    fn of(endpoint: Endpoint, filter: &'a str, value: &str, directory: &'a str) -> Self {
        Self {
            endpoint,
            filter: vec![(filter, value.to_owned())],
            directory: Some(directory),
        }
    }
}

/// A walk in progress, page by page.
pub struct Pages<'a> {
    api: &'a Api,
    list: List<'a>,
    /// Cursors to continue from, the best one last; empty before the first page.
    cursors: Vec<String>,
    /// Every cursor that a page gave us. One that comes again leads in a circle.
    given: HashSet<String>,
    first_at: Option<Timestamp>,
    ended: bool,
}

/// Proof that a list was walked to its end.
#[derive(Debug, Clone, Copy)]
pub struct Walked {
    /// When the server made the first page, by its own clock.
    pub first_at: Timestamp,
}

impl<'a> Pages<'a> {
    /// Starts a walk from the beginning.
    pub fn of(api: &'a Api, list: List<'a>) -> Self {
        Self {
            api,
            list,
            cursors: Vec::new(),
            given: HashSet::new(),
            first_at: None,
            ended: false,
        }
    }

    /// The next page; `None` after the last one.
    pub async fn next(&mut self) -> Result<Option<Page>, ApiError> {
        if self.ended {
            return Ok(None);
        }
        let page = self.fetch().await?;
        self.first_at.get_or_insert(page.at);
        match &page.after {
            None => self.ended = true,
            Some(after) if !self.given.insert(after.clone()) => return Err(ApiError::Circle),
            Some(after) => {
                let ids = page.objects.iter().filter_map(|object| id_of(object));
                let last: Vec<String> = ids.collect();
                let others = last.len().saturating_sub(CURSORS);
                self.cursors = last.into_iter().skip(others).collect();
                self.cursors.retain(|id| id != after);
                self.cursors.push(after.clone());
            }
        }
        Ok(Some(page))
    }

    /// The proof that the walk reached its end; `None` until it did.
    pub fn walked(&self) -> Option<Walked> {
        let first_at = self.first_at.filter(|_| self.ended)?;
        Some(Walked { first_at })
    }

    /// Fetches the page after the newest cursor that is accepted. A cursor names an object, which may be gone.
    async fn fetch(&mut self) -> Result<Page, ApiError> {
        loop {
            let mut query = self.list.filter.clone();
            query.push(("limit", PAGE.to_string()));
            query.extend(self.cursors.last().map(|after| ("after", after.clone())));
            let ask = Ask {
                endpoint: self.list.endpoint,
                id: None,
                query,
                directory: self.list.directory,
            };
            match self.api.get(&ask).await {
                Ok(answer) => return Ok(Page::of(&answer)?),
                Err(ApiError::Refused(_) | ApiError::NotFound(_)) if self.cursors.len() > 1 => {
                    tracing::debug!("a cursor was refused; continuing from the object before it");
                    self.cursors.pop();
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// The id of a listed object.
pub fn id_of(object: &str) -> Option<String> {
    let [id] = json::members(object, &["id"]).ok()?;
    id.and_then(json::string).map(Into::into)
}
