//! A picture of the scene: where the eye is, and what colour each pixel has.

use super::build::Scene;
use super::math::{Vec3, add, cross, dot, inverse_sqrt, mul, reciprocal, scale, sub, unit};
use super::trace::{FAR, Hit, Ray, any_hit, closest_hit};
use allocator_api2::alloc::Allocator;
use std::sync::atomic::{AtomicU32, Ordering};

/// Eye, picture plane, light and floor. `shaders/raytrace.comp` declares the same structure.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub struct View {
    /// Where the rays begin.
    pub eye: Vec3,
    /// Direction of the ray through the middle of the first pixel, top left.
    pub corner: Vec3,
    /// From a pixel to the next in its row.
    pub right: Vec3,
    /// From a pixel to the one below.
    pub down: Vec3,
    /// Towards the light, of length 1.
    pub light: Vec3,
    /// Height of the floor.
    pub floor: f32,
}

const _: () = assert!(size_of::<View>() == 64);

impl View {
    /// The cube from -1 to 1 from a little above and to the right, in a picture of `width` times `height` pixels.
    pub fn of_the_cube(width: u32, height: u32) -> Self {
        let eye = [0.9, 0.7, 3.4];
        let forward = unit(sub([0.0, -0.1, 0.0], eye));
        let sideways = unit(cross(forward, [0.0, 1.0, 0.0]));
        let up = cross(sideways, forward);
        // The shorter side of the picture spans the same angle whatever its shape.
        let pixel = 0.9 / width.min(height) as f32;
        let (right, down) = (scale(sideways, pixel), scale(up, -pixel));
        let to_corner = add(scale(right, 0.5 - 0.5 * width as f32), scale(down, 0.5 - 0.5 * height as f32));
        Self { eye, corner: add(forward, to_corner), right, down, light: unit([0.5, 1.0, 0.6]), floor: -1.0 }
    }
}

const SKY: [Vec3; 2] = [[0.80, 0.82, 0.86], [0.30, 0.42, 0.62]];
const FLOOR: Vec3 = [0.55, 0.53, 0.50];
const FUR: Vec3 = [0.72, 0.55, 0.42];
/// How far a shadow ray begins above the surface.
const LIFT: f32 = 1e-2;

/// Renders the scene on the CPU, in all its threads: red, green, blue and opacity in the bytes of each pixel,
/// row by row from the top. `tick` is told of each finished row.
pub fn render<A>(scene: &Scene<A>, view: &View, width: u32, height: u32, tick: impl Fn() + Sync) -> Vec<u32>
where
    A: Allocator + Clone + Sync,
{
    let pixels = vec![0; width as usize * height as usize];
    let rows: Vec<_> = pixels.into_iter().map(AtomicU32::new).collect();
    let next = AtomicU32::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let y = next.fetch_add(1, Ordering::Relaxed);
                    if y >= height {
                        break;
                    }
                    let row = &rows[y as usize * width as usize..][..width as usize];
                    for (x, pixel) in (0..).zip(row) {
                        pixel.store(colour(scene, view, x, y), Ordering::Relaxed);
                    }
                    tick();
                }
            });
        }
    });
    rows.into_iter().map(AtomicU32::into_inner).collect()
}

/// What an eye ray comes to: its colour with and without the light, and from where the light would have to be seen.
struct Seen {
    lit: Vec3,
    dark: Vec3,
    origin: Vec3,
    faces_light: bool,
}

/// The colour of one pixel.
fn colour<A: Allocator + Clone>(scene: &Scene<A>, view: &View, x: u32, y: u32) -> u32 {
    let direction = add(add(view.corner, scale(view.right, x as f32)), scale(view.down, y as f32));
    let ray = Ray { origin: view.eye, direction };
    let hit = closest_hit(scene, &ray);
    let floor = if direction[1] < -1e-6 { (view.floor - view.eye[1]) * reciprocal(direction[1]) } else { FAR };
    let seen = match hit {
        Some(hit) if hit.t < floor => surface(view, &ray, &hit, normals(scene, &hit)),
        _ if floor < FAR => ground(&ray, floor),
        _ => sky(direction),
    };
    let lit = seen.faces_light && !any_hit(scene, &Ray { origin: seen.origin, direction: view.light });
    pack(if lit { seen.lit } else { seen.dark })
}

/// The normals of the corners of the triangle that was hit.
fn normals<A: Allocator + Clone>(_scene: &Scene<A>, hit: &Hit) -> [Vec3; 3] {
    // SAFETY: the hit is on a triangle of the scene, which is borrowed; nobody changes it.
    unsafe { (*hit.triangle).corners.map(|corner| (*corner).normal) }
}

/// The surface of the mesh: light from one side, and a little from above.
fn surface(view: &View, ray: &Ray, hit: &Hit, [a, b, c]: [Vec3; 3]) -> Seen {
    let sum = add(add(scale(a, 1.0 - hit.u - hit.v), scale(b, hit.u)), scale(c, hit.v));
    let mut normal = unit(sum);
    if hit.back {
        normal = scale(normal, -1.0);
    }
    let facing = dot(normal, view.light);
    let dark = 0.28 + 0.12 * normal[1];
    Seen {
        lit: scale(FUR, dark + 0.85 * facing),
        dark: scale(FUR, dark),
        origin: along(ray.at(hit.t), normal, LIFT),
        faces_light: facing > 0.0,
    }
}

/// The floor, fading into the sky with distance.
fn ground(ray: &Ray, t: f32) -> Seen {
    let point = ray.at(t);
    let fade = ((point[0] * point[0] + point[2] * point[2]) * 0.04).min(1.0);
    Seen {
        lit: mix(FLOOR, SKY[0], fade),
        dark: mix(scale(FLOOR, 0.4), SKY[0], fade),
        origin: along(point, [0.0, 1.0, 0.0], LIFT),
        faces_light: true,
    }
}

fn sky(direction: Vec3) -> Seen {
    let colour = mix(SKY[0], SKY[1], (direction[1] * 2.0).clamp(0.0, 1.0));
    Seen { lit: colour, dark: colour, origin: [0.0; 3], faces_light: false }
}

fn along(origin: Vec3, direction: Vec3, t: f32) -> Vec3 {
    Ray { origin, direction }.at(t)
}

fn mix(a: Vec3, b: Vec3, k: f32) -> Vec3 {
    add(a, mul(sub(b, a), [k; 3]))
}

/// A colour as a pixel: square roots, as screens roughly expect, in bytes.
fn pack(colour: Vec3) -> u32 {
    let [r, g, b] = colour.map(|value| {
        let value = value.clamp(1e-6, 1.0);
        (value * inverse_sqrt(value) * 255.0 + 0.5).min(255.0) as u32
    });
    r | g << 8 | b << 16 | 0xff00_0000
}

#[cfg(test)]
mod tests {
    use super::super::trace::tests::patch;
    use super::*;
    use allocator_api2::alloc::Global;

    #[test]
    fn a_picture_shows_mesh_floor_and_sky() {
        let scene = Scene::build(&patch(8), Global, |_| {}).unwrap();
        let pixels = render(&scene, &View::of_the_cube(40, 30), 40, 30, || {});
        assert_eq!(pixels.len(), 1200);
        let mut colours = pixels.clone();
        colours.sort_unstable();
        colours.dedup();
        assert!(colours.len() > 50, "only {} colours", colours.len());
        assert!(pixels.iter().all(|pixel| pixel >> 24 == 255));
    }

    #[test]
    fn the_cube_is_in_the_middle_whatever_the_shape() {
        let scene = Scene::build(&patch(8), Global, |_| {}).unwrap();
        for (width, height) in [(64, 64), (200, 50), (50, 200)] {
            let view = View::of_the_cube(width, height);
            let middle =
                add(add(view.corner, scale(view.right, width as f32 / 2.0)), scale(view.down, height as f32 / 2.0));
            assert!(closest_hit(&scene, &Ray { origin: view.eye, direction: middle }).is_some());
        }
    }
}
