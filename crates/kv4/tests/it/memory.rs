//! What views count is what the process takes. Each shape is measured in a process of its own, so
//! that nothing else is in it.

use std::process::Command;
use std::sync::Arc;

use kv4::store::Change;
use kv4::view::{Limits, Load, Views};
use kv4::{Head, Stamp, Ver, Version};

use super::*;

/// How far the count may be from the truth, in hundredths.
const TOLERANCE: usize = 15;
const SHAPE: &str = "GANGLION_MEASURED_SHAPE";

/// How a view comes to be what it is.
#[derive(Clone, Copy, Debug)]
struct Shape {
    nodes: usize,
    entries: usize,
    /// Of a value.
    bytes: usize,
    secondary: usize,
    /// Written one after another, in no order, instead of loaded.
    is_written: bool,
}

const SHAPES: [Shape; 7] = [
    Shape { nodes: 1, entries: 200_000, bytes: 10, secondary: 0, is_written: false },
    Shape { nodes: 20, entries: 10_000, bytes: 40, secondary: 0, is_written: true },
    Shape { nodes: 2_000, entries: 100, bytes: 40, secondary: 0, is_written: false },
    Shape { nodes: 20, entries: 5_000, bytes: 40, secondary: 1, is_written: false },
    Shape { nodes: 20, entries: 5_000, bytes: 40, secondary: 3, is_written: true },
    Shape { nodes: 50_000, entries: 1, bytes: 40, secondary: 0, is_written: false },
    Shape { nodes: 20_000, entries: 4, bytes: 300, secondary: 0, is_written: false },
];

#[cfg(target_os = "linux")]
#[test]
fn views_take_the_memory_that_they_count() {
    const NAME: &str = "memory::views_take_the_memory_that_they_count";
    if let Ok(shape) = std::env::var(SHAPE) {
        let (counted, taken) = measure(SHAPES[shape.parse::<usize>().unwrap()]);
        println!("measured {counted} {taken}");
        return;
    }
    let mut wrong = Vec::new();
    for (nth, shape) in SHAPES.iter().enumerate() {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args([NAME, "--exact", "--nocapture"]).env(SHAPE, nth.to_string());
        let output = String::from_utf8(child.output().unwrap().stdout).unwrap();
        let line = output.lines().find_map(|line| line.split_once("measured ")).unwrap().1;
        let (counted, taken) = line.split_once(' ').unwrap();
        let (counted, taken): (usize, usize) = (counted.parse().unwrap(), taken.parse().unwrap());
        let entries = shape.nodes * shape.entries;
        println!(
            "{shape:?}: counted {} an entry, taken {}: {} %",
            counted / entries,
            taken / entries,
            counted * 100 / taken
        );
        if counted.abs_diff(taken) * 100 > TOLERANCE * taken {
            wrong.push(*shape);
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// Bytes that views of a shape count, and those that the process took for them.
#[cfg(target_os = "linux")]
fn measure(shape: Shape) -> (usize, usize) {
    let limits = Limits { bytes_max: 1 << 30, node_bytes_max: 1 << 29, idle_s: 600 };
    let views = Views::new(limits);
    let before = resident();
    for nth in 0..shape.nodes {
        let node = node(nth % 7, nth);
        let Load::Mine(ticket) = views.load(&node) else { panic!("nobody else loads") };
        if shape.is_written {
            ticket.loaded(Vec::new());
            for at in 0..shape.entries {
                // Each place once: the step has no common factor with any number of entries here.
                let head = head(shape, at * 7_919 % shape.entries);
                views.apply(&[changed(&node, &head)]);
            }
        } else {
            let mut heads: Vec<Head> = (0..shape.entries).map(|at| head(shape, at)).collect();
            heads.sort_by(|a, b| a.key.cmp(&b.key));
            ticket.loaded(heads);
        }
    }
    (views.stats().bytes, resident() - before)
}

fn head(shape: Shape, at: usize) -> Head {
    let secondary = |nth: usize| {
        (nth < shape.secondary).then(|| Key::parse(&format!("secondary{nth}-{at}")).unwrap())
    };
    Head {
        key: key(at),
        ver: Ver { generation: 1, stamp: Stamp { micros: 1, neuron: 1 } },
        // Each row that is read from a store has its own.
        who: Arc::from("elena".to_owned()),
        value: Json::string(&"x".repeat(shape.bytes)),
        keys: [secondary(0), secondary(1), secondary(2)],
    }
}

fn changed(node: &Node, head: &Head) -> kv4::store::Event {
    let Head { key, ver, who, value, keys } = head.clone();
    kv4::store::Event::Changed(Change {
        seq: kv4::store::Seq(1),
        entry: node.entry(key),
        version: Some(Version { ver, who, value: Some(value), keys }),
    })
}

#[cfg(target_os = "linux")]
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4_096
}
