//! The resolutions of an autoencoder, each at once or in strips of rows, with the same result to the bit.
//!
//! At the highest resolutions a map is too large to have several of: of Stable Diffusion's decoder at 4096x4096 one of 128 channels
//! has 8.6 GB. There a layer computes a strip of a map at a time, from the rows that it sees. Nothing is blended, and nothing
//! changes: what a norm has to know of its whole input are sums, which are taken strip by strip in the order of the whole
//! ([`ChannelSums`]), and convolutions that begin at the rows that they compute together give each pixel the bits of the whole
//! ([`Conv2d::for_rows`]). The attention in the middle is over all pixels, at the lowest resolution, with its queries in parts.
//!
//! A norm's sums are there only when its input was computed to the last row. So a residual block takes two passes: one for the sums of its
//! second norm, which computes the first convolution and drops it, and one that computes it again and goes on to the end. Only what
//! goes in and what comes out is held, and a strip of the former is let go of when it is read for the last time: together they
//! take the place of one map. What comes out gives the next block's first sums on the way. What an upsampling gives, or the encoder's
//! first convolution, is held in memory if there is enough; else it is not held at all but computed in each pass of the block
//! that follows, of which there are three then. With its two highest resolutions in strips, Stable Diffusion's decoder takes 1.25 times
//! the products of the whole in the first case and 1.75 times in the second. To hold nothing of these resolutions, and
//! to begin each pass at the one below, would take more than 6 times as many, since there are 13 norms above it.
//!
//! What is held takes memory as far as there is enough, and the rest goes to a file that nobody else sees ([`ScratchFile`]):
//! it is written and read in order, a few times, which takes a disk less time than the products take.
//!
//! [`ScratchFile`]: crate::files::ScratchFile

mod held;
mod rows;

use crate::Result;
use crate::kernels::{ChannelSums, LEAST_SIDE};
use crate::layers::{Conv2d, FeatureMap, GroupNorm};
use crate::models::resnet::ResnetBlock;
use held::{Held, Store};
use rows::{Before, Convolved, Residual, RowSource};
use std::cell::RefCell;

/// How an autoencoder goes about pictures whose maps are large: in strips of rows, which changes no bit of what it gives.
///
/// A resolution whose maps fit into the memory is computed at once. It is for the kernels of the CPU, where nobody asks for a
/// gradient; elsewhere all is computed at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Strips {
    /// Rows that are computed together, at every resolution; rounded up to a multiple of four.
    pub rows: usize,
    /// The bytes that maps may have in memory. Where they have more, what is held between the passes is on the disk, in the folder
    /// that `TMPDIR` names or in `/var/tmp`. What is computed at a time comes on top of it.
    pub memory: u64,
}

impl Strips {
    /// All at once, whatever it takes.
    pub const NONE: Self = Self { rows: usize::MAX, memory: u64::MAX };

    /// For pictures that are `width` pixels wide, as many rows as keep the threads busy in little memory.
    pub fn for_width(width: usize, memory: u64) -> Self {
        /// Pixels of a strip: with 256 channels, as at Stable Diffusion's highest resolution, they take 32 MB.
        const PIXELS: usize = 32 << 10;
        Self { rows: (PIXELS / width.max(1)).clamp(8, 64), memory }
    }

    /// How many tokens the attention over a map of this width has at a time; keys and values are laid out anew for each.
    pub(super) fn tokens(&self, width: usize) -> usize {
        self.rows.saturating_mul(8 * width)
    }

    /// Whether attention over a map goes over all tokens at once: there are queries, keys and values of its size, the latter two
    /// once more as products take them, and what goes in and comes out.
    pub(super) fn have_room_for_attention(&self, x: &FeatureMap) -> bool {
        self.have_room(8, x.chw())
    }

    /// Whether a resolution is computed at once whose largest map has these channels, rows and columns: a residual block has two
    /// of them and what it makes of them. The kernels compute strips of narrow maps in another way than the whole.
    fn have_room_for_block(&self, dims: (usize, usize, usize)) -> bool {
        self.have_room(3, dims) || dims.1.min(dims.2) < LEAST_SIDE
    }

    fn have_room(&self, maps: u64, (channels, height, width): (usize, usize, usize)) -> bool {
        bytes(maps * channels as u64, height, width) <= self.memory
    }
}

/// What so many values for each pixel take, in f32.
pub(super) fn bytes(values: u64, height: usize, width: usize) -> u64 {
    [height, width, size_of::<f32>()].iter().fold(values, |product, &side| product.saturating_mul(side as u64))
}

/// What changes the size or the channels before the residual blocks of a resolution.
#[derive(Debug, Clone, Copy)]
pub(super) enum Entry<'a> {
    Nothing,
    Conv(&'a Conv2d),
    /// By nearest neighbours, and a convolution.
    Upsampling(&'a Conv2d),
}

impl<'a> Entry<'a> {
    /// Channels, height and width of what comes out.
    fn dims(self, (channels, height, width): (usize, usize, usize)) -> (usize, usize, usize) {
        match self {
            Self::Nothing => (channels, height, width),
            Self::Conv(conv) => {
                let [height, width] = conv.output_sides([height, width]);
                (conv.outputs(), height, width)
            }
            Self::Upsampling(conv) => (conv.outputs(), 2 * height, 2 * width),
        }
    }

    fn forward(self, x: FeatureMap) -> Result<FeatureMap> {
        match self {
            Self::Nothing => Ok(x),
            Self::Conv(conv) => conv.forward(&x),
            Self::Upsampling(conv) => {
                let (_, _, height, width) = x.dims();
                conv.forward(&x.resize_nearest(2 * height, 2 * width)?)
            }
        }
    }

    fn rows<'b>(self, x: impl RowSource + 'b) -> Box<dyn RowSource + 'b>
    where
        'a: 'b,
    {
        match self {
            Self::Nothing => Box::new(x),
            Self::Conv(conv) => Box::new(Convolved::new(x, Before::Nothing, conv)),
            Self::Upsampling(conv) => Box::new(Convolved::new(x, Before::Upsampling, conv)),
        }
    }
}

/// The residual blocks of one resolution.
#[derive(Debug)]
pub(super) struct Resolution<'a> {
    pub entry: Entry<'a>,
    pub resnets: &'a [ResnetBlock],
}

/// A map between resolutions.
enum Carried<'s> {
    AtOnce(FeatureMap),
    /// Perhaps with the sums for the norm that sees it next.
    InStrips(Held<'s>, Option<ChannelSums>),
}

/// Computes resolutions, the one after the other, then a norm and a convolution if they follow. `tell` is called
/// with each resolution's number when it begins, and in strips over and over; its error ends the run.
pub(super) fn forward(
    x: FeatureMap,
    resolutions: &[Resolution<'_>],
    end: Option<(&GroupNorm, &Conv2d)>,
    strips: &Strips,
    tell: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<FeatureMap> {
    let store = Store::new(strips.memory);
    let run = Run { strips, store: &store, tell: RefCell::new(tell) };
    let mut carried = Carried::AtOnce(x);
    for (i, resolution) in resolutions.iter().enumerate() {
        run.tell(i)?;
        let next_norm = resolutions.get(i + 1).map_or(end.map(|(norm, _)| norm), |next| match next {
            Resolution { entry: Entry::Nothing, resnets: [first, ..] } => Some(first.norms()[0]),
            _ => None,
        });
        carried = run.resolution(carried, resolution, next_norm, i)?;
    }
    run.tell(resolutions.len())?;
    match (carried, end) {
        (Carried::AtOnce(x), None) => Ok(x),
        (Carried::AtOnce(x), Some((norm, conv))) => conv.forward(&norm.forward(&x)?),
        (Carried::InStrips(held, _), None) => run.whole(held.last_rows(), resolutions.len()),
        (Carried::InStrips(held, sums), Some((norm, conv))) => {
            let sums = sums.map_or_else(|| run.sums(norm, held.rows(), resolutions.len()), Ok)?;
            run.whole(Convolved::new(held.last_rows(), Before::Norm(norm, &sums), conv), resolutions.len())
        }
    }
}

/// The passes of a run.
struct Run<'s, 't> {
    strips: &'s Strips,
    store: &'s Store,
    tell: RefCell<&'t mut dyn FnMut(usize) -> Result<()>>,
}

impl<'s> Run<'s, '_> {
    fn tell(&self, part: usize) -> Result<()> {
        (self.tell.borrow_mut())(part)
    }

    fn resolution(
        &self,
        carried: Carried<'s>,
        resolution: &Resolution<'_>,
        next_norm: Option<&GroupNorm>,
        part: usize,
    ) -> Result<Carried<'s>> {
        let &Resolution { entry, resnets } = resolution;
        let dims = entry.dims(match &carried {
            Carried::AtOnce(x) => x.chw(),
            Carried::InStrips(held, _) => held.dims(),
        });
        if self.strips.have_room_for_block(dims) {
            let x = match carried {
                Carried::AtOnce(x) => x,
                Carried::InStrips(held, _) => self.whole(held.last_rows(), part)?,
            };
            let mut h = entry.forward(x)?;
            for resnet in resnets {
                h = resnet.forward(&h, None)?;
            }
            return Ok(Carried::AtOnce(h));
        }
        let (mut held, mut sums) = match carried {
            Carried::AtOnce(x) => (self.held(x)?, None),
            Carried::InStrips(held, sums) => (held, sums),
        };
        if resnets.is_empty() {
            let (held, sums) = self.hold(entry.rows(held.last_rows()), dims, next_norm, part)?;
            return Ok(Carried::InStrips(held, sums));
        }
        for (i, block) in resnets.iter().enumerate() {
            let entry = if i == 0 { entry } else { Entry::Nothing };
            let next_norm = resnets.get(i + 1).map_or(next_norm, |next| Some(next.norms()[0]));
            (held, sums) = self.residual(held, sums, entry, block, next_norm, part)?;
        }
        Ok(Carried::InStrips(held, sums))
    }

    /// A residual block after an entry, and the sums for the norm that sees it.
    fn residual(
        &self,
        held: Held<'s>,
        sums: Option<ChannelSums>,
        entry: Entry<'_>,
        block: &ResnetBlock,
        next_norm: Option<&GroupNorm>,
        part: usize,
    ) -> Result<(Held<'s>, Option<ChannelSums>)> {
        let ([norm1, norm2], [conv1, conv2]) = (block.norms(), block.convs());
        let (held, sums, entry) = match entry {
            Entry::Conv(_) | Entry::Upsampling(_) if self.store.has_room(entry.dims(held.dims())) => {
                let dims = entry.dims(held.dims());
                let (held, sums) = self.hold(entry.rows(held.last_rows()), dims, Some(norm1), part)?;
                (held, sums, Entry::Nothing)
            }
            _ => (held, sums, entry),
        };
        let first = sums.map_or_else(|| self.sums(norm1, entry.rows(held.rows()), part), Ok)?;
        let hidden = Convolved::new(entry.rows(held.rows()), Before::Norm(norm1, &first), conv1);
        let second = self.sums(norm2, hidden, part)?;
        let (_, height, width) = entry.dims(held.dims());
        let sum = Residual::new(entry.rows(held.last_rows()), block, [&first, &second]);
        self.hold(sum, (conv2.outputs(), height, width), next_norm, part)
    }

    /// A map as it is computed, and the sums for the norm that sees it.
    fn hold(
        &self,
        source: impl RowSource,
        dims: (usize, usize, usize),
        norm: Option<&GroupNorm>,
        part: usize,
    ) -> Result<(Held<'s>, Option<ChannelSums>)> {
        let (mut held, mut sums) = (Held::new(self.store, dims), norm.map(GroupNorm::sums));
        self.pass(source, part, |rows| {
            if let Some(sums) = &mut sums {
                rows.add_to(sums)?;
            }
            held.push(rows)
        })?;
        Ok((held, sums))
    }

    /// The sums over a map for the norm that sees it.
    fn sums(&self, norm: &GroupNorm, source: impl RowSource, part: usize) -> Result<ChannelSums> {
        let mut sums = norm.sums();
        self.pass(source, part, |rows| rows.add_to(&mut sums))?;
        Ok(sums)
    }

    fn held(&self, x: FeatureMap) -> Result<Held<'s>> {
        let mut held = Held::new(self.store, x.chw());
        held.push(x)?;
        Ok(held)
    }

    fn whole(&self, source: impl RowSource, part: usize) -> Result<FeatureMap> {
        let mut strips = Vec::new();
        self.pass(source, part, |rows| {
            strips.push(rows);
            Ok(())
        })?;
        FeatureMap::stacked(&strips)
    }

    /// All rows of a map, strip by strip.
    fn pass(
        &self,
        mut source: impl RowSource,
        part: usize,
        mut each: impl FnMut(FeatureMap) -> Result<()>,
    ) -> Result<()> {
        let (height, mut done) = (source.height(), 0);
        while done < height {
            self.tell(part)?;
            let strip = source.next(done.saturating_add(self.strips.rows.max(1)).min(height))?;
            let (_, _, rows, _) = strip.dims();
            done += rows;
            each(strip)?;
        }
        Ok(())
    }
}
