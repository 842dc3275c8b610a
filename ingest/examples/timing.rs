//! Whether the time a refusal takes tells how much of a forged signature was right: the first byte wrong against the last
//! byte wrong, in turns, and Welch's t over the two. Beyond ±4.5 there would be a leak.
//!
//! `cargo run --release -p ingest --example timing [ROUNDS]`

use std::hint::black_box;
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderValue};
use bytes::Bytes;
use ingest::signature::{HEADER, Verifier, sign};
use service::settings::Secret;
use time::OffsetDateTime;

fn main() -> anyhow::Result<()> {
    let rounds: u32 = std::env::args().nth(1).map_or(Ok(1_000_000), |n| n.parse())?;
    let (now, secret) = (
        OffsetDateTime::UNIX_EPOCH + Duration::from_hours(480_000),
        Secret::from("whsec_timing"),
    );
    let verifier = Verifier::new(&secret, Duration::from_mins(3))?;
    let body = Bytes::from(vec![b'x'; 1_000]);
    let right = sign(&secret, now, &body)?;
    let forged = |from_end: usize| -> anyhow::Result<HeaderMap> {
        let mut header = right.clone().into_bytes();
        let at = header.len() - from_end;
        header[at] = if header[at] == b'0' { b'1' } else { b'0' };
        Ok(HeaderMap::from_iter([(
            HEADER.parse()?,
            HeaderValue::from_bytes(&header)?,
        )]))
    };
    let kinds = [forged(64)?, forged(1)?];
    let mut samples = [Vec::new(), Vec::new()];
    for round in 0..rounds {
        for turn in 0..2 {
            // Which goes first changes, or the caches would be what is measured.
            let kind = usize::from((round + turn) % 2 == 0);
            let start = Instant::now();
            let verdict = verifier.verify(black_box(&kinds[kind]), body.clone(), now);
            let took = start.elapsed();
            assert!(black_box(verdict).is_err(), "a forgery is believed");
            samples[kind].push(took.as_secs_f64() * 1e9);
        }
    }
    // Interruptions are no part of what is compared: the slowest hundredth of each goes.
    let [(m0, v0, n0), (m1, v1, n1)] = samples.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times.truncate(times.len() * 99 / 100);
        #[expect(clippy::cast_precision_loss, reason = "millions")]
        let n = times.len() as f64;
        let mean = times.iter().sum::<f64>() / n;
        (
            mean,
            times.iter().map(|t| (t - mean).powi(2)).sum::<f64>() / (n - 1.0),
            n,
        )
    });
    let t = (m0 - m1) / (v0 / n0 + v1 / n1).sqrt();
    println!("{rounds} of each: first byte wrong {m0:.1} ns, last byte wrong {m1:.1} ns, t = {t:.2}");
    Ok(())
}
