//! The harness: private servers, the programs as child processes, and the comparison of the tables with the source and
//! with their history.
//!
//! Every test has its own servers, ports and directories, so tests run side by side without seeing each other's state.
//! Whatever a test starts ends with it, even if the test process is killed.
//!
//! The harness never uses the programs' own code to judge them, and depends on none of their libraries.

mod authority;
mod cluster;
mod comparison;
mod eventually;
mod history;
mod metrics;
mod nats;
mod pooler;
mod ports;
mod postgres;
mod process;
mod program;
mod proxy;
mod running;
mod shared_out;
mod template;
mod usage;
mod watchdog;

pub use authority::{Authority, Identity};
pub use cluster::Cluster;
pub use comparison::{Difference, agrees, differences};
pub use eventually::{eventually, holds};
pub use history::{Change, History};
pub use metrics::Metrics;
pub use nats::{Nats, NatsOptions, Store};
pub use pooler::Pooler;
pub use ports::Port;
pub use postgres::{Backup, Durability, Postgres};
pub use process::{Process, Signal};
pub use program::{Output, Program};
pub use proxy::{Cut, Line, Proxy};
pub use running::Running;
pub use shared_out::shared_out;
pub use usage::{cpu_seconds, database_cpu_seconds, peak_rss, rss};
pub use watchdog::{Watchdog, Watched};
