//! Which data set, and having it fetched.

#[cfg(feature = "download")]
use super::print;
use clap::Args;
use std::path::PathBuf;
use tweedie::training::data::{FolderOptions, ImageSet, Split, read_set};

#[derive(Debug, Args)]
pub struct DataArguments {
    /// A folder of IDX files (MNIST, Fashion-MNIST) or of pictures (labels: sub-folders or metadata.jsonl; captions: metadata.jsonl
    /// or a .txt file beside each)
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,

    /// Cut out each picture's centre and resample it to N by N pixels
    #[arg(long, value_name = "N")]
    resize: Option<usize>,
}

/// Data sets that can be fetched.
#[derive(Debug, Args)]
pub struct DownloadArguments {
    /// Fetch MNIST's four files into the folder first, as far as they are not there
    #[cfg(feature = "download")]
    #[arg(long)]
    download: bool,

    /// Where to fetch them from: a URL to which their names are appended [default: TWEEDIE_MNIST_MIRROR, or a public one]
    #[cfg(feature = "download")]
    #[arg(long, value_name = "URL", requires = "download")]
    mirror: Option<String>,
}

impl DownloadArguments {
    /// Fetches the data if that was asked for.
    #[cfg(feature = "download")]
    pub fn fetch(&self, data: &DataArguments, quiet: bool) -> anyhow::Result<()> {
        use std::ops::ControlFlow;
        use tweedie_pipelines::download::{DownloadEvent, MNIST, MNIST_MIRROR, fetch};
        if !self.download {
            return Ok(());
        }
        let mirror = self.mirror.clone().or_else(|| std::env::var("TWEEDIE_MNIST_MIRROR").ok());
        fetch(&MNIST, mirror.as_deref().unwrap_or(MNIST_MIRROR), &data.data, &mut |event| {
            match event {
                DownloadEvent::Saved(name) if !quiet => print::remark(&format!("fetched {name}")),
                DownloadEvent::Present(name) if !quiet => print::remark(&format!("{name} is there")),
                _ => {}
            }
            ControlFlow::Continue(())
        })?;
        Ok(())
    }

    /// This build fetches nothing.
    #[cfg(not(feature = "download"))]
    pub fn fetch(&self, _: &DataArguments, _: bool) -> anyhow::Result<()> {
        Ok(())
    }
}

impl DataArguments {
    /// The side of the squares that pictures are made to.
    pub fn resize(&self) -> Option<usize> {
        self.resize
    }

    /// A part of the set.
    pub fn read(&self, split: Split) -> anyhow::Result<ImageSet> {
        Ok(read_set(&self.data, split, FolderOptions { resize: self.resize, channels: None })?)
    }

    /// The part to judge by, if there is one.
    pub fn read_test(&self) -> anyhow::Result<Option<ImageSet>> {
        let there = tweedie::training::data::has_idx(&self.data) || self.data.join("test").is_dir();
        there.then(|| self.read(Split::Test)).transpose()
    }
}
