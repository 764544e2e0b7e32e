//! Maps that are held whole, in strips: in memory, and on the disk what there is no memory for.

use super::bytes;
use super::rows::RowSource;
use crate::files::{Place, ScratchFile};
use crate::layers::{Backend, FeatureMap};
use crate::{Error, Result};
use candle_core::{CpuStorage, Device, Storage, Tensor};
use std::cell::RefCell;

/// Where the strips of a run are held.
#[derive(Debug)]
pub(super) struct Store {
    /// The most bytes in memory.
    most: u64,
    state: RefCell<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes in memory.
    held: u64,
    scratch: Option<ScratchFile>,
}

/// Some rows of a map.
#[derive(Debug)]
enum Strip {
    InMemory(FeatureMap),
    OnDisk { place: Place, dims: (usize, usize, usize, usize), backend: Backend },
}

impl Store {
    pub fn new(most: u64) -> Self {
        Self { most, state: RefCell::default() }
    }

    /// Whether a map of so many channels, rows and columns can be in memory.
    pub fn has_room(&self, (channels, height, width): (usize, usize, usize)) -> bool {
        self.state.borrow().held.saturating_add(bytes(channels as u64, height, width)) <= self.most
    }

    fn keep(&self, map: FeatureMap) -> Result<Strip> {
        let tokens = map.tokens()?;
        if tokens.track_op() {
            return Err(Error::invalid("a map in strips", "one that a gradient is asked for", "compute all at once"));
        }
        let mut state = self.state.borrow_mut();
        let (storage, layout) = tokens.storage_and_layout();
        match (&*storage, layout.contiguous_offsets()) {
            (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) if state.held + map.bytes() > self.most => {
                let scratch = match &mut state.scratch {
                    Some(scratch) => scratch,
                    none => none.insert(ScratchFile::new()?),
                };
                let place = scratch.write(&values[start..end])?;
                Ok(Strip::OnDisk { place, dims: map.dims(), backend: map.backend() })
            }
            // Only tests have another type than f32 here, on small maps.
            _ => {
                state.held += map.bytes();
                drop(storage);
                Ok(Strip::InMemory(map))
            }
        }
    }

    fn read(&self, strip: &Strip) -> Result<FeatureMap> {
        match strip {
            Strip::InMemory(map) => Ok(map.clone()),
            Strip::OnDisk { place, dims: (batch, channels, height, width), backend } => {
                let values = match &mut self.state.borrow_mut().scratch {
                    Some(scratch) => scratch.read(place)?,
                    None => Vec::new(),
                };
                let tokens = Tensor::from_vec(values, (*batch, height * width, *channels), &Device::Cpu)?;
                FeatureMap::from_tokens(&tokens, *height, *width, *backend)
            }
        }
    }

    fn let_go(&self, strip: Strip) {
        let mut state = self.state.borrow_mut();
        match strip {
            Strip::InMemory(map) => state.held -= map.bytes(),
            Strip::OnDisk { place, .. } => state.scratch.iter_mut().for_each(|scratch| scratch.free(place)),
        }
    }
}

/// A map that is held whole.
#[derive(Debug)]
pub(super) struct Held<'s> {
    store: &'s Store,
    strips: Vec<Strip>,
    /// Channels, height and width.
    dims: (usize, usize, usize),
}

impl<'s> Held<'s> {
    /// One of which there is nothing yet, of so many channels, rows and columns.
    pub fn new(store: &'s Store, dims: (usize, usize, usize)) -> Self {
        Self { store, strips: Vec::new(), dims }
    }

    /// Adds the next rows.
    pub fn push(&mut self, rows: FeatureMap) -> Result<()> {
        self.strips.push(self.store.keep(rows)?);
        Ok(())
    }

    /// Channels, height and width.
    pub fn dims(&self) -> (usize, usize, usize) {
        self.dims
    }

    /// From the first row on.
    pub fn rows(&self) -> impl RowSource {
        let store = self.store;
        HeldRows { height: self.dims.1, strips: self.strips.iter().map(|strip| store.read(strip)) }
    }

    /// The same for the last time: each strip is let go of when it is read.
    pub fn last_rows(self) -> impl RowSource + use<'s> {
        let store = self.store;
        let read = move |strip: Strip| {
            let rows = store.read(&strip);
            store.let_go(strip);
            rows
        };
        HeldRows { height: self.dims.1, strips: self.strips.into_iter().map(read) }
    }
}

struct HeldRows<I> {
    strips: I,
    height: usize,
}

impl<I: Iterator<Item = Result<FeatureMap>>> RowSource for HeldRows<I> {
    fn height(&self) -> usize {
        self.height
    }

    /// A strip, however many rows are asked for.
    fn next(&mut self, _: usize) -> Result<FeatureMap> {
        self.strips.next().unwrap_or_else(|| Err(Error::invalid("the rows of a held map", self.height, ALL_READ)))
    }
}

/// What is wrong with a reader that goes beyond the last row.
const ALL_READ: &str = "all of them were read; this is a fault of the layers' order";
