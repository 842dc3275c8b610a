//! Ports for servers that must keep them across restarts.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

use anyhow::{Context as _, bail};

/// Below the range from which systems choose ports for outgoing connections, so that no such connection takes one.
const FIRST: u16 = 20_000;
const COUNT: u16 = 10_000;

/// A port of 127.0.0.1 that no other harness on this machine uses while this value lives.
#[derive(Debug)]
pub struct Port {
    number: u16,
    /// Locked. The lock ends with the process, however that ends.
    _lock: Option<File>,
}

impl Port {
    /// Takes a free port.
    pub fn reserve() -> anyhow::Result<Port> {
        let locks = std::env::temp_dir().join("dsync-test-ports");
        std::fs::create_dir_all(&locks).context("cannot make the directory of port locks")?;
        // Processes start far apart; within a process, the locks keep ports apart.
        let start = std::process::id().wrapping_mul(7_919);
        for step in 0..u32::from(COUNT) {
            let offset = u16::try_from(start.wrapping_add(step) % u32::from(COUNT))?;
            if let Some(port) = Port::take(&locks, FIRST + offset) {
                return Ok(port);
            }
        }
        bail!("no free port between {FIRST} and {}", FIRST + COUNT - 1)
    }

    /// The port's number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// `127.0.0.1:<port>`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.number)
    }

    fn take(locks: &Path, number: u16) -> Option<Port> {
        let lock = match File::create(locks.join(number.to_string())) {
            Ok(file) => {
                file.try_lock().ok()?;
                Some(file)
            }
            // The lock file is another user's. The port may be in use, so skip it.
            Err(_) => return None,
        };
        TcpListener::bind((Ipv4Addr::LOCALHOST, number)).ok()?;
        Some(Port { number, _lock: lock })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_given_twice_while_it_is_held() {
        let ports: Vec<Port> = (0..50).map(|_| Port::reserve().unwrap()).collect();
        let mut numbers: Vec<u16> = ports.iter().map(Port::number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 50);
    }
}
