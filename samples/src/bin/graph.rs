//! Breadth-first search and PageRank on a Vulkan device that follows the pointers between a graph's nodes.

use anyhow::{Context, Result, ensure};
use clap::Parser;
use std::path::PathBuf;
use std::slice::from_mut;
use vksvm::{Heap, Svm};
use vksvm_samples::graph::{EdgeList, Graph, UNSEEN, breadth_first, debian, page_rank};
use vksvm_samples::{device, progress};

const BFS: &[u8] = include_bytes!("../../shaders/spv/bfs.spv");
const PAGERANK: &[u8] = include_bytes!("../../shaders/spv/pagerank.spv");
/// Invocations of a workgroup, in both kernels.
const GROUP: u32 = 64;
const DAMPING: f32 = 0.85;
/// Largest relative difference from the CPU's ranks, which are in double precision.
const TOLERANCE: f64 = 1e-4;

/// Searches and ranks a graph on a Vulkan device, and checks the results against the CPU's
#[derive(Parser)]
#[command(version)]
struct Options {
    /// A file with an edge per line, as two node numbers; # begins a comment
    #[arg(conflicts_with = "debian")]
    edges: Option<PathBuf>,
    /// Take this machine's package index: packages and what they depend on [default without a file]
    #[arg(long)]
    debian: bool,
    /// Where the search begins: a node number or package [default: the node with the most edges from it]
    #[arg(long)]
    root: Option<String>,
    /// Iterations of PageRank
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    iterations: u32,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let list = read(&options)?;
    println!("{} nodes, {} edges", list.names.len(), list.edges.len());
    let root = match &options.root {
        Some(name) => list.find(name).with_context(|| format!("--root {name}: no such node in the graph"))?,
        None => busiest(&list),
    };
    let svm = device::open()?;
    let mut graph = Graph::build(&list, svm.heap())?;
    search(&svm, &list, &mut graph, root)?;
    rank(&svm, &list, &mut graph, options.iterations)?;
    println!("\nok: levels and ranks are the CPU's");
    Ok(())
}

/// The graph that the options ask for.
fn read(options: &Options) -> Result<EdgeList> {
    if let Some(file) = &options.edges {
        return Ok(EdgeList::read(file)?);
    }
    ensure!(
        options.debian || !debian::files().is_empty(),
        "which graph? Give a file with an edge per line (`graph EDGES`); there is no package index here for --debian"
    );
    let spinner = progress::spinner("reading the package index");
    let index = debian::read()?;
    spinner.finish_and_clear();
    for file in &index.files {
        println!("read {}", file.display());
    }
    println!("{} dependencies are on packages that are not in there", index.unknown);
    Ok(index.graph)
}

/// The node with the most edges from it.
fn busiest(list: &EdgeList) -> u32 {
    let mut degrees = vec![0; list.names.len()];
    for &(from, _) in &list.edges {
        degrees[from as usize] += 1;
    }
    (0..).zip(degrees).max_by_key(|&(_, degree): &(u32, u32)| degree).map_or(0, |(node, _)| node)
}

/// Breadth-first search, a launch a level.
fn search(svm: &Svm, list: &EdgeList, graph: &mut Graph<Heap>, root: u32) -> Result<()> {
    // SAFETY: the kernel reads `count` pointers from `nodes`, the nodes they lead to, and their arrays of neighbours,
    // and writes levels of nodes and one word at `changed`. Every launch is given a live graph. Run again over its
    // own stores it comes to the same (the argument is in its source).
    let kernel = unsafe { svm.kernel("bfs", BFS)? }.idempotent();
    let count = graph.nodes().len() as u32;
    graph.update(|index, node| node.level = if index == root as usize { 0 } else { UNSEEN });
    let mut changed = svm.heap().boxed(1u32)?;
    let spinner = progress::spinner("breadth-first search");
    let mut level = 0u32;
    let before = svm.stats();
    while *changed != 0 {
        *changed = 0;
        let launch = kernel.launch([count.div_ceil(GROUP), 1, 1]);
        // SAFETY: the graph is borrowed exclusively, and the launch ends before anything else is done with it.
        let launch = unsafe { launch.pointer(graph.nodes().as_ptr()) };
        launch.write(from_mut(&mut *changed)).value(count).value(level).run()?;
        level += 1;
        spinner.set_message(format!("breadth-first search, level {level}"));
    }
    spinner.finish_and_clear();

    let levels = graph.values(|node| node.level);
    device::print_since(svm, &before, &format!("breadth-first search, {level} launches, and reading the levels"));
    let reached = levels.iter().filter(|&&level| level != UNSEEN).count();
    println!("\nfrom {}: {reached} nodes reached, the farthest over {} edges", list.names[root as usize], level - 1);
    for depth in 0..level.min(8) {
        let there = (0..levels.len()).filter(|&index| levels[index] == depth);
        let some: Vec<_> = there.clone().take(4).map(|index| list.names[index].as_str()).collect();
        println!("  level {depth}: {} ({}, …)", there.count(), some.join(", "));
    }
    let expected = breadth_first(list, root);
    if let Some(index) = (0..levels.len()).find(|&index| levels[index] != expected[index]) {
        let name = &list.names[index];
        anyhow::bail!("{name} is on level {}, but the CPU has it on level {}", levels[index], expected[index]);
    }
    Ok(())
}

/// PageRank, a launch an iteration.
fn rank(svm: &Svm, list: &EdgeList, graph: &mut Graph<Heap>, iterations: u32) -> Result<()> {
    // SAFETY: the kernel reads `count` pointers from `nodes`, the nodes they lead to, and their arrays of neighbours,
    // and writes ranks that it does not read. Every launch is given a live graph.
    let kernel = unsafe { svm.kernel("pagerank", PAGERANK)? }.idempotent();
    let count = graph.nodes().len() as u32;
    graph.update(|_, node| node.rank[0] = 1.0 / count as f32);
    let before = svm.stats();
    let bar = progress::bar("PageRank", iterations.into());
    for iteration in 0..iterations {
        let launch = kernel.launch([count.div_ceil(GROUP), 1, 1]);
        // SAFETY: the graph is borrowed exclusively, and the launch ends before anything else is done with it.
        let launch = unsafe { launch.pointer(graph.nodes().as_ptr()) };
        launch.value(count).value(iteration % 2).value((1.0 - DAMPING) / count as f32).value(DAMPING).run()?;
        bar.inc(1);
    }
    bar.finish_and_clear();

    let ranks = graph.values(|node| f64::from(node.rank[iterations as usize % 2]));
    device::print_since(svm, &before, &format!("PageRank, {iterations} launches, and reading the ranks"));
    let sum: f64 = ranks.iter().sum();
    let mut order: Vec<_> = (0..ranks.len()).collect();
    order.sort_by(|&a, &b| ranks[b].total_cmp(&ranks[a]));
    println!("\nhighest ranks after {iterations} iterations:");
    for &index in order.iter().take(8) {
        println!("  {:7.4} %  {}", 100.0 * ranks[index] / sum, list.names[index]);
    }
    let expected = page_rank(list, f64::from(DAMPING), iterations);
    let difference = |index: usize| (ranks[index] / expected[index] - 1.0).abs();
    let worst = (0..ranks.len()).max_by(|&a, &b| difference(a).total_cmp(&difference(b))).unwrap_or(0);
    let (name, largest) = (&list.names[worst], difference(worst));
    println!("largest difference from the CPU's ranks: {largest:.1e} ({name})");
    ensure!(largest <= TOLERANCE, "the rank of {name} is {}, but the CPU's is {}", ranks[worst], expected[worst]);
    Ok(())
}
