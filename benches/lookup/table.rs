//! What was measured, as a table for people and as JSON for the next run.

use std::fmt;

use serde_json::json;

use crate::race::Group;

/// Everything measured in one run.
#[derive(Default)]
pub(crate) struct Table {
    groups: Vec<Group>,
    memory: Vec<Memory>,
}

/// Bytes alive for each name held.
struct Memory {
    names: usize,
    ours: f64,
    peer: f64,
}

impl Table {
    pub(crate) fn add(&mut self, group: Group) {
        self.groups.push(group);
    }

    pub(crate) fn add_memory(&mut self, names: usize, ours: f64, peer: f64) {
        self.memory.push(Memory { names, ours, peer });
    }

    /// One object: `groups` with times in nanoseconds, `memory` in bytes.
    pub(crate) fn json(&self) -> serde_json::Result<String> {
        let groups = self.groups.iter().map(|group| {
            let contenders = group.results.iter().map(|result| {
                json!({
                    "who": result.label,
                    "median_ns": result.median,
                    "least_ns": result.least,
                    "first_over_this": result.first_over_this,
                    "instances": result.instances,
                    "allocations": result.allocations,
                    "allocated_bytes": result.bytes,
                })
            });
            json!({"row": group.row, "contenders": contenders.collect::<Vec<_>>()})
        });
        let memory = self.memory.iter().map(|memory| {
            json!({"names": memory.names, "proconsul": memory.ours, "hickory": memory.peer})
        });
        serde_json::to_string_pretty(&json!({
            "groups": groups.collect::<Vec<_>>(),
            "memory_a_name": memory.collect::<Vec<_>>(),
        }))
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for group in &self.groups {
            writeln!(
                f,
                "{:<44} {:>9} {:>9} {:>10} {:>9} {:>6} {:>9}",
                group.row, "median", "least", "1st/this", "instances", "allocs", "bytes"
            )?;
            for result in &group.results {
                writeln!(
                    f,
                    "  {:<42} {:>9} {:>9} {:>10.3} {:>9} {:>6.1} {:>9.0}",
                    result.label,
                    time(result.median),
                    time(result.least),
                    result.first_over_this,
                    result.instances,
                    result.allocations,
                    result.bytes,
                )?;
            }
            writeln!(f)?;
        }
        for memory in &self.memory {
            writeln!(f, "bytes alive a name, {} names", memory.names)?;
            writeln!(f, "  {:<42} {:>9.0}", "proconsul", memory.ours)?;
            writeln!(f, "  {:<42} {:>9.0}", "hickory", memory.peer)?;
            writeln!(f, "  {:<42} {:>9.3}", "ratio", memory.ours / memory.peer)?;
        }
        Ok(())
    }
}

fn time(nanos: f64) -> String {
    match nanos {
        ..1e3 => format!("{nanos:.1} ns"),
        ..1e6 => format!("{:.2} µs", nanos / 1e3),
        _ => format!("{:.2} ms", nanos / 1e6),
    }
}
