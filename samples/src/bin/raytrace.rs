//! Ray-traces a mesh on a Vulkan device that follows the CPU's own pointers through a tree of linked nodes;
//! then the CPU bends the mesh in place, and only what it touched moves for the second picture.

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::slice::from_ref;
use vksvm::{Heap, Kernel, LaunchReport, PageState, Placement, Svm, SvmBox, SvmVec};
use vksvm_samples::device;
use vksvm_samples::mesh::Mesh;
use vksvm_samples::progress;
use vksvm_samples::scene::{Difference, PageSet, Scene, View, render, write_png};

const KERNEL: &[u8] = include_bytes!("../../shaders/spv/raytrace.spv");
const BUNNY: &[u8] = include_bytes!("../../data/bunny.obj");

/// Ray-traces a triangle mesh twice, changing it in between, and checks both pictures against the CPU's
///
/// It shows mirroring: pages are copied to the device, also where the device could work on the CPU's own pages and nothing would have to
/// move (see --placement).
#[derive(Parser)]
#[command(version)]
struct Options {
    /// An OBJ or PLY file [default: the Stanford bunny]
    mesh: Option<PathBuf>,
    /// Width of the pictures in pixels
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=16384))]
    width: u32,
    /// Height of the pictures in pixels
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=16384))]
    height: u32,
    /// The pictures go to PREFIX-1.png and PREFIX-2.png
    #[arg(long, value_name = "PREFIX", default_value = "raytrace")]
    output: PathBuf,
    /// Where pages are that the device uses: `copy` shows how they move, `auto` takes what is fastest on the device
    #[arg(long, value_enum, default_value_t = Place::Copy)]
    placement: Place,
    /// End with a line that begins `demo: ok` or `demo: FAILED`
    #[arg(long)]
    demo: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Place {
    Copy,
    Auto,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let title = if options.demo { "demo: " } else { "" };
    match run(&options) {
        Ok(figures) => {
            println!("\n{title}ok {figures}");
            ExitCode::SUCCESS
        }
        Err(error) if options.demo => {
            println!("\ndemo: FAILED {error:#}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Does it all and returns the figures for the last line.
fn run(options: &Options) -> Result<String> {
    let mesh = match &options.mesh {
        Some(file) => Mesh::read(file)?,
        None => Mesh::parse(Path::new("bunny.obj"), BUNNY)?,
    };
    let svm = device::open_with(|builder| match options.placement {
        Place::Copy => builder.placement(Placement::Copy),
        Place::Auto => builder.placement_by_measurement(),
    })?;
    // SAFETY: the kernel reads the tree below its `root` and its `view`, and writes `width` times `height` pixels
    // from `image`; every launch is given these alive and of that size. It reads nothing that it writes.
    let kernel = unsafe { svm.kernel("raytrace", KERNEL)? }.idempotent();
    let mut studio = Studio::new(options, &mesh, &svm, kernel)?;

    let first = studio.picture(1)?;
    let absent = studio.absent_pages();
    let before = svm.stats();
    let mut allowed = studio.scene.bend();
    let (changed, all) = (allowed.len(), studio.scene.pages().len());
    device::print_since(
        &svm,
        &before,
        &format!("the CPU bent the mesh, and wrote to {changed} of the scene's {all} pages"),
    );
    let second = studio.picture(2)?;

    // What may move: what the CPU wrote, and what the device did not have.
    allowed.extend(&absent);
    let driver_cpu_faults = svm.stats().driver_cpu_faults;
    let figures = format!(
        "nodes {}, triangles {}; difference from the CPU's: first picture {}, second {}; pages moved: first {}, \
         second {} (at most {} changed or newly needed); driver-thread CPU faults {}",
        studio.scene.node_count(),
        studio.scene.triangle_count(),
        first.difference,
        second.difference,
        first.report.pages_in,
        second.report.pages_in,
        allowed.len(),
        driver_cpu_faults,
    );
    let rounding = first.difference.is_rounding() && second.difference.is_rounding();
    ensure!(rounding, "the pictures differ from the CPU's by more than rounding: {figures}");
    let moved = second.report.pages_in as usize;
    ensure!(moved <= allowed.len(), "the second picture moved pages that nobody had touched: {figures}");
    ensure!(driver_cpu_faults == 0, "the driver touched the program's pages: {figures}");
    Ok(figures)
}

/// What both pictures are made with. All of it but the kernel is in the shared heap.
struct Studio<'a> {
    options: &'a Options,
    svm: &'a Svm,
    kernel: Kernel,
    scene: Scene<Heap>,
    view: SvmBox<View>,
    image: SvmVec<u32>,
}

/// How a picture came out.
struct Outcome {
    report: LaunchReport,
    difference: Difference,
}

impl<'a> Studio<'a> {
    fn new(options: &'a Options, mesh: &Mesh, svm: &'a Svm, kernel: Kernel) -> Result<Self> {
        let (width, height) = (options.width, options.height);
        let bar = progress::bar("building the tree", mesh.triangles.len() as u64);
        let scene = Scene::build(mesh, svm.heap(), |triangles| bar.inc(triangles as u64))?;
        bar.finish_and_clear();
        println!("{} triangles in {} nodes", scene.triangle_count(), scene.node_count());
        let view = svm.heap().boxed(View::of_the_cube(width, height))?;
        let image = svm.heap().vec_zeroed(width as usize * height as usize)?;
        Ok(Self { options, svm, kernel, scene, view, image })
    }

    /// Renders on the device, writes the file, compares with the CPU's picture, and reports.
    fn picture(&mut self, number: u32) -> Result<Outcome> {
        let before = self.svm.stats();
        let report = self.render()?;

        let (width, height) = (self.options.width, self.options.height);
        let mut name = self.options.output.as_os_str().to_owned();
        name.push(format!("-{number}.png"));
        let file = PathBuf::from(name);
        write_png(&file, width, height, &self.image).with_context(|| format!("cannot write {}", file.display()))?;
        println!("written to {}", file.display());

        let bar = progress::bar("the same on the CPU", height.into());
        let expected = render(&self.scene, &self.view, width, height, || bar.inc(1));
        bar.finish_and_clear();
        let difference = Difference::between(&self.image, &expected);
        println!("difference from the CPU's picture: {difference}");
        device::print_since(
            self.svm,
            &before,
            &format!("picture {number}, rendered on the device and read on the CPU"),
        );
        Ok(Outcome { report, difference })
    }

    fn render(&mut self) -> Result<LaunchReport> {
        let (width, height) = (self.options.width, self.options.height);
        let launch = self.kernel.launch([width.div_ceil(8), height.div_ceil(8), 1]);
        // SAFETY: the root is that of `self.scene`, which lives and is not changed until the launch has ended, as
        // `self` is borrowed exclusively and `run` waits; all that its pointers lead to belongs to it.
        let launch = unsafe { launch.pointer(self.scene.root()) };
        let launch = launch.read(from_ref(&*self.view)).write(&mut self.image[..]).value(width).value(height);
        Ok(launch.run()?)
    }

    /// Pages of scene, view and image that the device has no copy of.
    fn absent_pages(&self) -> PageSet {
        let mut pages = self.scene.pages();
        pages.insert(&raw const *self.view, 1);
        pages.insert(self.image.as_ptr(), self.image.len());
        pages.retain(|page| self.svm.heap().page_info(page).is_none_or(|info| info.state == PageState::Cpu));
        pages
    }
}
