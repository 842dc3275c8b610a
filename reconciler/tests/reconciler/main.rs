//! The reconciler against a simulated WorkOS, a real Postgres, a real NATS and a real projector.

mod stand;
mod sweeping;
