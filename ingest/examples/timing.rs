//! Tests whether the time of a refusal reveals how much of a forged signature was right. Compares signatures with the
//! first and with the last byte wrong, in turns, by Welch's t. Two equal forgeries are compared as well, to show the
//! noise.
//!
//! `cargo run --release -p ingest --example timing [ROUNDS]`

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::header::{HeaderMap, HeaderValue};
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
        // A digit replaces a digit, and a letter a letter: the time to parse hexadecimal may depend on which it is.
        header[at] = match header[at] {
            b'0' => b'1',
            b'1'..=b'9' => b'0',
            b'a' => b'b',
            _ => b'a',
        };
        Ok(HeaderMap::from_iter([(
            HEADER.parse()?,
            HeaderValue::from_bytes(&header)?,
        )]))
    };
    // The third is the same as the first, elsewhere in memory: a difference between those two is not a leak.
    let kinds = [forged(64)?, forged(1)?, forged(64)?];
    let mut samples = [Vec::new(), Vec::new(), Vec::new()];
    for round in 0..rounds {
        for turn in 0..3 {
            // The order rotates: otherwise this would measure the caches.
            let kind = usize::try_from((round + turn) % 3)?;
            let start = Instant::now();
            let verdict = verifier.verify(black_box(&kinds[kind]), body.clone(), now);
            let took = start.elapsed();
            assert!(black_box(verdict).is_err(), "a forgery was accepted");
            samples[kind].push(took.as_secs_f64() * 1e9);
        }
    }
    // The slowest hundredth of each is dropped, so that interruptions do not count.
    let [first, last, again] = samples.map(|mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times.truncate(times.len() * 99 / 100);
        #[expect(clippy::cast_precision_loss, reason = "millions")]
        let n = times.len() as f64;
        let mean = times.iter().sum::<f64>() / n;
        let variance = times.iter().map(|t| (t - mean).powi(2)).sum::<f64>() / (n - 1.0);
        (mean, variance / n)
    });
    let t = |a: (f64, f64), b: (f64, f64)| (a.0 - b.0) / (a.1 + b.1).sqrt();
    println!(
        "{rounds} of each, ns: first byte wrong {:.1}, last {:.1}, first again {:.1}",
        first.0, last.0, again.0
    );
    println!(
        "t: first against last {:.2}, first against first again {:.2}",
        t(first, last),
        t(first, again)
    );
    Ok(())
}
