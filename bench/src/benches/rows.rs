//! Sums of rows: each invocation stays on a page for many accesses, in the ways that the include has for that.

use super::workloads::{Arguments, Peer, Workload, results};
use crate::kernels::{Push, Raw, WALK_GROUP};
use anyhow::{Result, ensure};
use vksvm::device::vulkan::RawBuffer;
use vksvm::{Kernel, Svm, SvmVec};

/// Words of a row: half a page.
const WIDTH: u32 = 512;

/// `out[i]` = the sum of row i.
pub(super) struct Rows {
    data: SvmVec<u32>,
    out: SvmVec<u32>,
    raw_out: RawBuffer,
    _data: RawBuffer,
    peer: Peer,
}

impl Rows {
    pub(super) fn new(svm: &Svm, n: u32, spirv: &[u8]) -> Result<Self> {
        let data: Vec<u32> = (0..n * WIDTH).map(|i| i.wrapping_mul(0x9e37_79b9)).collect();
        let raw = Raw::new(svm)?;
        let raw_data = raw.buffer_with(&data)?;
        let raw_out = raw.results(n as usize * 4)?;
        let push = Push::default().address(&raw_data).address(&raw_out).add(n).add(WIDTH);
        Ok(Self {
            data: svm.heap().vec_from_slice(&data)?,
            out: svm.heap().vec_from_slice(&vec![0u32; n as usize])?,
            raw_out,
            _data: raw_data,
            peer: Peer::new(raw, "raw_rows", spirv, push, n.div_ceil(WALK_GROUP))?,
        })
    }
}

impl Workload for Rows {
    fn launch(&mut self, kernel: &Kernel, arguments: Arguments) -> Result<()> {
        let n = self.out.len() as u32;
        let launch = kernel.launch([n.div_ceil(WALK_GROUP), 1, 1]);
        let launch = match arguments {
            Arguments::Pointers => launch.read(&self.data[..]).write(&mut self.out[..]),
            Arguments::Arrays => launch.read_array(&self.data[..]).write_array(&mut self.out[..]),
        };
        Ok(launch.value(n).value(WIDTH).run().map(drop)?)
    }

    fn peer(&mut self) -> &mut Peer {
        &mut self.peer
    }

    fn check(&self) -> Result<()> {
        let sum = |row: &[u32]| row.iter().fold(0u32, |sum, &word| sum.wrapping_add(word));
        let right = |out: &[u32]| out.iter().zip(self.data.chunks(WIDTH as usize)).all(|(&out, row)| out == sum(row));
        ensure!(right(&self.out) && right(results(&self.raw_out)), "the sums of rows are wrong");
        Ok(())
    }
}
