//! Fuzz targets, fed with their corpora, with mutations of those, and with chance.

use std::path::{Path, PathBuf};

use sim::fuzz::{TARGETS, Target};
use sim::random::Random;

use super::{held, number};

/// Inputs of each target when `GANGLION_SEEDS` does not say.
const INPUTS: u64 = 3_000;
/// The same for the target that commits every input to a store.
const STORE_INPUTS: u64 = 150;
const INPUT_BYTES_MAX: u64 = 400;
/// Pieces that parsers look for.
const WORDS: [&str; 32] = [
    "/",
    "..",
    "%2F",
    "%",
    "+",
    "&",
    "=",
    "#",
    "!",
    ":",
    "{",
    "}",
    "[",
    "]",
    "\"",
    "\\u",
    "\\",
    "null",
    "1e999",
    "\u{feff}",
    "é",
    "𝄞",
    "\0",
    "\n",
    "2026:2:29",
    "{\"t\":\"u\",\"m\":{},\"p\":1}",
    "\"id\":",
    "\"c\":\"a1-1\"",
    "\"f\":\"/my/path/one\"",
    "\"o\":\"peers\",",
    "\"t\":\"four\",",
    "\0\0\0\u{1}",
];

#[test]
fn every_target_holds_on_its_corpus() {
    for target in TARGETS {
        let corpus = corpus(&target);
        assert!(!corpus.is_empty(), "{} has no corpus", target.0);
        for (file, input) in corpus {
            eprintln!("{}", file.display());
            target.1(&input);
        }
    }
}

#[test]
fn every_target_holds_on_what_chance_makes_of_its_corpus() {
    for (nth, target) in (0u64..).zip(TARGETS) {
        let corpus: Vec<Vec<u8>> = corpus(&target).into_iter().map(|(_, input)| input).collect();
        let default = if target.0 == "store_keys" { STORE_INPUTS } else { INPUTS };
        let seeds = match number("GANGLION_SEED") {
            Some(seed) => seed..seed + 1,
            None => 0..number("GANGLION_SEEDS").unwrap_or(default),
        };
        for seed in seeds {
            let mut random = Random::new(seed << 8 | nth);
            let input = input(&mut random, &corpus);
            held("fuzz::every_target_holds_on_what_chance", seed, |_| {
                let shown = String::from_utf8_lossy(&input).into_owned();
                let result = std::panic::catch_unwind(|| target.1(&input));
                result.map_err(|_| format!("{}: {input:?} {shown:?}", target.0))
            });
        }
    }
}

fn corpus(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.0);
    let Ok(files) = std::fs::read_dir(&folder) else { return Vec::new() };
    let mut inputs: Vec<_> = files
        .map(|file| file.unwrap().path())
        .map(|path| (path.clone(), std::fs::read(&path).unwrap()))
        .collect();
    inputs.sort();
    inputs
}

/// A known input with some changes, or noise.
fn input(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    if corpus.is_empty() || random.one_in(6) {
        let mut noise = vec![0; usize::try_from(random.below(INPUT_BYTES_MAX)).unwrap()];
        random.fill(&mut noise);
        return noise;
    }
    let mut input = corpus[random.place(corpus.len())].clone();
    for _ in 0..=random.below(6) {
        let at = random.place(input.len() + 1);
        match random.below(8) {
            0 => input.truncate(at),
            1 if !input.is_empty() => drop(input.remove(at.min(input.len() - 1))),
            2 if !input.is_empty() => {
                let at = at.min(input.len() - 1);
                input[at] ^= 1 << random.below(8);
            }
            3 => {
                let other = &corpus[random.place(corpus.len())];
                let from = random.place(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            4 => {
                let word = input[at..].to_vec();
                let take = random.place(word.len() + 1);
                input.splice(at..at, word[..take].iter().copied());
            }
            5 => {
                let byte = u8::try_from(random.below(256)).unwrap();
                let count = usize::try_from(random.below(300)).unwrap();
                input.splice(at..at, std::iter::repeat_n(byte, count));
            }
            _ => {
                let word = WORDS[random.place(WORDS.len())];
                input.splice(at..at, word.bytes());
            }
        }
    }
    input
}
