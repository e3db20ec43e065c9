//! Work lists: the workgroups that a dispatch runs.

/// Workgroups to run.
#[derive(Clone, Debug)]
pub(super) enum WorkList {
    /// `count` ids from `first` on.
    Span { first: u32, count: u32 },
    /// These ids.
    Ids(Vec<u32>),
}

impl WorkList {
    pub(super) fn len(&self) -> u32 {
        match self {
            Self::Span { count, .. } => *count,
            Self::Ids(ids) => ids.len() as u32,
        }
    }

    pub(super) fn id(&self, slot: u32) -> u32 {
        match self {
            Self::Span { first, .. } => first + slot,
            Self::Ids(ids) => ids[slot as usize],
        }
    }

    /// Cuts off all but the first `count` workgroups.
    pub(super) fn split_off(&mut self, count: u32) -> Self {
        match self {
            Self::Span { first, count: all } => {
                let rest = Self::Span { first: *first + count, count: *all - count };
                *all = count;
                rest
            }
            Self::Ids(ids) => Self::Ids(ids.split_off(count as usize)),
        }
    }
}

/// A linear workgroup id as coordinates in the grid.
pub(super) fn coordinates(id: u32, grid: [u32; 3]) -> [u32; 3] {
    [id % grid[0], id / grid[0] % grid[1], id / grid[0] / grid[1]]
}
