//! Reads of single objects, which are there or gone. Only `WorkOS`'s own 404 means "gone".

use schema::json::Malformed;
use schema::timestamp::Timestamp;

use super::client::{Api, ApiError, Ask, Endpoint};

/// What a read of one object showed, and when, by the server's clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Read {
    /// It is there, with this JSON text.
    There(Timestamp, String),
    /// It is not there.
    Gone(Timestamp),
}

impl Api {
    /// Reads a directory.
    pub async fn directory(&self, id: &str) -> Result<Read, ApiError> {
        self.object(Endpoint::Directory, id, None).await
    }

    /// Reads a user of `directory`.
    pub async fn user(&self, directory: &str, id: &str) -> Result<Read, ApiError> {
        self.object(Endpoint::User, id, Some(directory)).await
    }

    /// Reads a group of `directory`.
    pub async fn group(&self, directory: &str, id: &str) -> Result<Read, ApiError> {
        self.object(Endpoint::Group, id, Some(directory)).await
    }

    async fn object(&self, endpoint: Endpoint, id: &str, directory: Option<&str>) -> Result<Read, ApiError> {
        let ask = Ask {
            endpoint,
            id: Some(id),
            query: Vec::new(),
            directory,
        };
        match self.get(&ask).await {
            Ok(answer) => {
                let text = String::from_utf8(answer.body.into()).map_err(|_| Malformed::NotUtf8)?;
                if super::pages::id_of(&text).as_deref() != Some(id) {
                    return Err(Malformed::Missing("id").into());
                }
                Ok(Read::There(answer.at, text))
            }
            Err(ApiError::NotFound(at)) => Ok(Read::Gone(at)),
            Err(error) => Err(error),
        }
    }
}
