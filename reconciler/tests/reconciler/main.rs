//! The reconciler against a simulated WorkOS, a real Postgres, a real NATS and a real projector.

mod asking;
mod breaking_off;
mod catching_up;
mod checking;
mod commanding;
mod comparing;
mod guarding;
mod holding;
mod official;
mod other_key;
mod oversized;
mod putting_off;
mod races;
mod relisting;
mod scripted;
mod sharing;
mod stand;
mod sweeping;
mod unreadable;
