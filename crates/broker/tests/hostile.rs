//! A million broken requests: none makes the reader panic, and none costs much more memory than was sent.

use std::alloc::System;

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The most bytes that are allocated for each byte that was sent, all allocations of a request added up. An element
/// of an array is sent in two bytes at least, and takes some hundred.
const FACTOR: usize = 100;
/// And for a request without any: the read buffer, and what an error says.
const BASE: usize = 8192;

fn samples() -> Vec<Vec<u8>> {
    let byte = |line: &str, i| u8::from_str_radix(&line[i..i + 2], 16).unwrap();
    let frame = |line: &str| (0..line.len()).step_by(2).map(|i| byte(line, i)).collect();
    include_str!("../testdata/requests.hex").lines().map(frame).collect()
}

/// Numbers that announce much: lengths in all widths, and varints.
const LENGTHS: [&[u8]; 6] = [
    &[0x7f, 0xff, 0xff, 0xff],
    &[0xff, 0xff, 0xff, 0xff, 0x07],
    &[0x7f, 0xff],
    &[0xff, 0xff, 0x7f],
    &[0x00, 0x0f, 0xff, 0xff],
    &[0xff, 0xff, 0xff, 0xff],
];

fn mutate(rng: &mut fastrand::Rng, frame: &mut Vec<u8>) {
    // Mostly behind the API's key and version, which would only be unknown ones.
    let at = if rng.u8(..20) == 0 { 0 } else { 8 };
    let at = rng.usize(at.min(frame.len() - 1)..frame.len());
    match rng.u8(..6) {
        0 => frame[at] = rng.u8(..),
        1 => frame[at] ^= 1 << rng.u8(..8),
        2 => frame.truncate(at.max(1)),
        3 => frame.insert(at, rng.u8(..)),
        4 => {
            let again: Vec<u8> = frame[at..].to_vec();
            frame.extend(again);
        }
        _ => {
            let length = LENGTHS[rng.usize(..LENGTHS.len())];
            let end = (at + length.len()).min(frame.len());
            frame.splice(at..end, length.iter().copied());
        }
    }
}

#[test]
fn no_request_costs_much_more_than_was_sent() {
    let rounds = std::env::var("ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(1_000_000);
    let samples = samples();
    // Once: what requests look like is read from a table.
    let _ = dibs_broker::read_requests(&[0, 0, 0, 8, 0, 18, 0, 0, 0, 0, 0, 0]);
    let mut rng = fastrand::Rng::with_seed(1);
    let (mut taken, mut refused, mut worst) = (0, 0, 0.0_f64);
    for round in 0..rounds {
        let mut frame = samples[rng.usize(..samples.len())].clone();
        for _ in 0..rng.usize(1..4) {
            mutate(&mut rng, &mut frame);
        }
        let mut stream = (frame.len() as u32).to_be_bytes().to_vec();
        stream.extend(&frame);
        let region = Region::new(ALLOCATOR);
        let read = dibs_broker::read_requests(&stream);
        let cost = region.change().bytes_allocated;
        assert!(cost <= FACTOR * stream.len() + BASE, "round {round}: {cost} bytes for {frame:02x?}");
        worst = worst.max(cost as f64 / stream.len() as f64);
        if read.is_ok() { taken += 1 } else { refused += 1 }
    }
    println!("{taken} taken, {refused} refused, at worst {worst:.0} bytes for each");
    assert!(taken > rounds / 20 && refused > rounds / 20, "{taken} taken, {refused} refused");
}
