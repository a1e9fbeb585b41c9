//! `cargo bench --bench framing --features internals`: how fast each framing cuts what is in memory already, beside
//! memchr alone, which only finds the ends of lines. See docs/PERFORMANCE.md.

use std::hint::black_box;

use backroom::internals::count_frames;
use backroom::{Decoder, Frame, Framing, LengthPrefix, LengthType, Malformed};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use memchr::{memchr_iter, memmem};

const TOTAL: usize = 1024 * 1024;
const MAX_FRAME: usize = 64 * 1024;
const SIZES: [usize; 3] = [16, 128, 4096];

/// Lines, to be compared with the framing that has them built in.
struct Lines;

impl Decoder for Lines {
    fn decode(&mut self, input: &[u8]) -> Result<Option<Frame>, Malformed> {
        Ok(memchr::memchr(b'\n', input).map(|end| Frame::new(0..end, end + 1)))
    }
}

/// So many frames of so many bytes each, one after the other.
fn input(size: usize, frame: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    frame(&vec![b'x'; size]).repeat(TOTAL / size)
}

fn framings(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("framing");
    for size in SIZES {
        let lines = input(size, |data| [data, b"\n"].concat());
        let crlfs = input(size, |data| [data, b"\r\n\r\n"].concat());
        let prefixed = input(size, |data| [&(data.len() as u32).to_be_bytes(), data].concat());
        let fixed = input(size, <[u8]>::to_vec);
        let expected = TOTAL / size;

        group.throughput(Throughput::Bytes(lines.len() as u64));
        group.bench_with_input(BenchmarkId::new("memchr alone", size), &lines, |bencher, input| {
            bencher.iter(|| assert_eq!(memchr_iter(b'\n', black_box(input)).count(), expected));
        });
        let mut cut = |name: &str, framing: Framing, input: &[u8]| {
            group.throughput(Throughput::Bytes(input.len() as u64));
            group.bench_function(BenchmarkId::new(name, size), |bencher| {
                bencher.iter(|| assert_eq!(count_frames(&framing, MAX_FRAME, black_box(input)), expected));
            });
        };
        cut("lines", Framing::lines(), &lines);
        cut("lines, by a Decoder", Framing::decoder(|| Lines), &lines);
        cut("delimiter of 4", Framing::delimiter("\r\n\r\n"), &crlfs);
        cut("length prefix", Framing::length_prefix(LengthPrefix::new(LengthType::U32Be)), &prefixed);
        cut("fixed", Framing::fixed(size), &fixed);
        let finder = memmem::Finder::new("\r\n\r\n");
        group.throughput(Throughput::Bytes(crlfs.len() as u64));
        group.bench_with_input(BenchmarkId::new("memmem alone", size), &crlfs, |bencher, input| {
            bencher.iter(|| assert_eq!(finder.find_iter(black_box(input)).count(), expected));
        });
    }
    group.finish();
}

criterion_group!(benches, framings);
criterion_main!(benches);
