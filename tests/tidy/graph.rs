//! A directed graph of named nodes, and its cycles.

use std::collections::{BTreeMap, BTreeSet};

/// The edges of each node.
#[derive(Default, Debug)]
pub struct Graph {
    edges: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    /// Adds an edge; an edge from a node to itself is not kept.
    pub fn add(&mut self, from: &str, to: &str) {
        if from != to {
            self.edges.entry(from.to_owned()).or_default().insert(to.to_owned());
        }
    }

    /// Every set of two or more nodes that reach each other.
    pub fn cycles(&self) -> Vec<BTreeSet<String>> {
        let reach: BTreeMap<&String, BTreeSet<&String>> =
            self.edges.keys().map(|node| (node, self.reachable(node))).collect();
        let mut cycles = BTreeSet::new();
        for (node, reached) in &reach {
            let back = reached.iter().filter(|other| reach.get(**other).is_some_and(|r| r.contains(node)));
            let cycle: BTreeSet<String> = back.map(|other| (*other).clone()).collect();
            if cycle.len() > 1 {
                cycles.insert(cycle);
            }
        }
        cycles.into_iter().collect()
    }

    fn reachable(&self, start: &str) -> BTreeSet<&String> {
        let (mut seen, mut todo) = (BTreeSet::new(), vec![start]);
        while let Some(node) = todo.pop() {
            for next in self.edges.get(node).into_iter().flatten() {
                if seen.insert(next) {
                    todo.push(next);
                }
            }
        }
        seen
    }
}

mod tests {
    use super::*;

    #[test]
    fn cycles_are_found_and_kept_apart() {
        let cycles = |edges: &str| {
            let mut graph = Graph::default();
            for edge in edges.split(' ') {
                graph.add(&edge[..1], &edge[1..]);
            }
            let sets = graph.cycles().into_iter();
            sets.map(|set| set.into_iter().collect::<String>()).collect::<Vec<_>>()
        };
        assert_eq!(cycles("ab bc ac aa"), [""; 0]);
        assert_eq!(cycles("ab ba"), ["ab"]);
        assert_eq!(cycles("ab bc ca cd de ed xa"), ["abc", "de"]);
    }
}
