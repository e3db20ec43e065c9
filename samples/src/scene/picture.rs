//! Pictures as files, and how much two of them differ.

use std::fmt;
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

/// Writes pixels (red in the lowest byte, then green, blue, opacity) as a PNG file.
///
/// # Errors
/// If the file cannot be written.
pub fn write_png(file: &Path, width: u32, height: u32, pixels: &[u32]) -> Result<(), png::EncodingError> {
    let mut encoder = png::Encoder::new(BufWriter::new(File::create(file)?), width, height);
    encoder.set_color(png::ColorType::Rgba);
    let mut writer = encoder.write_header()?;
    let bytes: Vec<u8> = pixels.iter().flat_map(|pixel| pixel.to_le_bytes()).collect();
    writer.write_image_data(&bytes)?;
    writer.finish()
}

/// How much two pictures of the same size differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Difference {
    /// Largest difference in any channel, of 255.
    pub largest: u8,
    /// Pixels that differ at all.
    pub pixels: usize,
    /// Pixels of a picture.
    pub of: usize,
}

impl Difference {
    /// Compares pixel by pixel.
    pub fn between(a: &[u32], b: &[u32]) -> Self {
        let largest = |(a, b): (&u32, &u32)| {
            let channels = a.to_le_bytes().into_iter().zip(b.to_le_bytes());
            channels.map(|(a, b)| a.abs_diff(b)).max().unwrap_or(0)
        };
        let differences = a.iter().zip(b).map(largest).filter(|&difference| difference > 0);
        let (pixels, largest) = differences.fold((0, 0), |(count, most), one| (count + 1, one.max(most)));
        // A picture that is too short differs everywhere that the other goes on.
        let missing = a.len().abs_diff(b.len());
        Self { largest: if missing > 0 { 255 } else { largest }, pixels: pixels + missing, of: a.len().max(b.len()) }
    }

    /// Share of the pixels that differ, in percent.
    pub fn percent(&self) -> f64 {
        100.0 * self.pixels as f64 / self.of.max(1) as f64
    }

    /// Whether rounding explains it: at most 2 of 255, on at most 0.5 % of the pixels.
    pub fn is_rounding(&self) -> bool {
        self.largest <= 2 && self.percent() <= 0.5
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "largest {}/255 on {:.3} % of pixels", self.largest, self.percent())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_channel_counts() {
        let difference = Difference::between(&[0x00_01_02_03, 7, 9], &[0x02_01_02_04, 7, 9]);
        assert_eq!(difference, Difference { largest: 2, pixels: 1, of: 3 });
        assert!(!difference.is_rounding());
    }

    #[test]
    fn rounding_is_little_and_rare() {
        let mut other = vec![0; 1000];
        other[..5].fill(2);
        assert!(Difference::between(&vec![0; 1000], &other).is_rounding());
        other[5] = 1;
        assert!(!Difference::between(&vec![0; 1000], &other).is_rounding());
        assert!(!Difference::between(&vec![0; 1000], &[3; 1]).is_rounding());
        assert!(Difference::between(&[], &[]).is_rounding());
    }

    #[test]
    fn a_picture_can_be_read_back() {
        let file = std::env::temp_dir().join(format!("vksvm-picture-{}.png", std::process::id()));
        write_png(&file, 2, 1, &[0xff00_0001, 0xff02_0000]).unwrap();
        let mut reader = png::Decoder::new(std::io::BufReader::new(File::open(&file).unwrap())).read_info().unwrap();
        let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut bytes).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert_eq!(bytes, [1, 0, 0, 255, 0, 0, 2, 255]);
    }
}
