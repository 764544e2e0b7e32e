//! Models by their names on the hub: `owner/name`, or `owner/name/FILE` for one file of weights, and `@revision` after it.
//!
//! They lie in the cache that Python's `huggingface_hub` and this program share:
//!
//! ```text
//! models--owner--name/
//!   blobs/SHA-256                   each file once, by its sum
//!   refs/main                       the commit that a branch was last seen at
//!   snapshots/COMMIT/unet/...       that commit's folder: links to blobs
//! ```
//!
//! What is in the cache runs without network. The rest is fetched: only the files that a pipeline reads, each to a file
//! beside its place that a later try goes on with, and it is renamed when its length and its SHA-256 are right.
//!
//! The client crate `hf-hub` knows the names of folders and addresses. It neither checks what came nor says how long a busy
//! server wants to be left alone, and sends the token wherever a list of files is redirected to on one host, so it is
//! `client.rs` that asks, and `transfer.rs` that fetches.
//!
//! # Examples
//!
//! ```no_run
//! use std::ops::ControlFlow;
//! use tweedie::Device;
//! use tweedie_pipelines::hub::{Hub, HubEvent, Wanted};
//! use tweedie_pipelines::{DTypeChoice, LatentDiffusion, Purpose};
//!
//! let wanted = Wanted::new(Purpose::Model, DTypeChoice::Auto, &Device::Cpu);
//! let name = "owner/name".parse()?;
//! let model = Hub::from_environment()?.open(&name, wanted, &mut |event| {
//!     if let HubEvent::Saved(name) = event {
//!         println!("fetched {name}");
//!     }
//!     ControlFlow::Continue(())
//! })?;
//! let pipeline = LatentDiffusion::builder().model(model).build()?;
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```

mod cache;
mod client;
mod known;
mod name;
mod needed;
mod sum;
mod transfer;

pub use cache::CachedModel;
pub use known::{KnownModel, is_short_name, known_models, nearest_name};
pub use name::HubName;
pub use needed::Wanted;

use crate::model::Model;
use cache::Snapshot;
use client::{Client, Listing};
use needed::Needed;
use std::ops::ControlFlow;
use std::path::PathBuf;
use tweedie::files::{folder_of, replace_file};
use tweedie::{Error, Result};

/// What a download tells its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HubEvent<'a> {
    /// So many bytes of a file are there.
    Progress {
        /// The file, by its path in the model.
        name: &'a str,
        /// Bytes so far, with those of an earlier try.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// A file is there now.
    Saved(&'a str),
    /// The server is busy and wants to be asked again after so many seconds.
    Waiting(u64),
}

/// Hears of a download; may break, which stops it. What came so far is kept for the next try.
pub type HubObserver<'a> = dyn FnMut(HubEvent<'_>) -> ControlFlow<()> + 'a;

/// Which files of the cache are not fetched again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trust {
    /// Those that are there.
    Present,
    /// Those whose contents have the sum that they are called by.
    Intact,
}

/// Where the hub and its cache are, and who asks.
#[derive(Clone)]
pub struct Hub {
    /// The folder of `models--...`.
    pub cache: PathBuf,
    /// The hub's URL; `None` is the public one.
    pub endpoint: Option<String>,
    /// Says who asks, for private and gated models.
    pub token: Option<String>,
    /// Whether only the cache is used.
    pub offline: bool,
}

impl Hub {
    /// As Python's client reads the environment: the cache from `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`, `HF_HOME` or
    /// the home folder, the token from `HF_TOKEN` or where its login saved it, `HF_ENDPOINT`, `HF_HUB_OFFLINE`.
    ///
    /// # Errors
    /// If there is no home folder and nothing names another.
    pub fn from_environment() -> Result<Self> {
        let text = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let path = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let home = path("HF_HOME")
            .or_else(|| path("XDG_CACHE_HOME").map(|caches| caches.join("huggingface")))
            .or_else(|| std::env::home_dir().map(|home| home.join(".cache/huggingface")));
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let Some(cache) = cache.or_else(|| home.as_ref().map(|home| home.join("hub"))) else {
            return Err(Error::invalid("the home folder", "unknown", "say with HF_HOME where models are kept"));
        };
        let saved = || {
            let file = path("HF_TOKEN_PATH").or_else(|| home.as_ref().map(|home| home.join("token")))?;
            std::fs::read_to_string(file).ok()
        };
        let token = text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN")).or_else(saved);
        let truth = |value: String| ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str());
        Ok(Self {
            cache,
            endpoint: text("HF_ENDPOINT"),
            token: token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()),
            offline: text("HF_HUB_OFFLINE").is_some_and(truth),
        })
    }

    /// The hub's URL.
    fn endpoint(&self) -> &str {
        self.endpoint.as_deref().unwrap_or("https://huggingface.co").trim_end_matches('/')
    }

    /// A model from the cache, or fetched if it is not there.
    ///
    /// That no other file of weights is in the cache does not say that the hub has none, so it is asked which one a
    /// repository's name means, and if it does not answer, the one that is there is taken.
    ///
    /// # Errors
    /// As [`Self::fetch`].
    pub fn open(&self, name: &HubName, wanted: Wanted, observer: &mut HubObserver<'_>) -> Result<Model> {
        let Some((needed, snapshot)) = self.found(name, wanted) else { return self.fetch(name, wanted, observer) };
        let model = needed.model(name, &snapshot);
        if !needed.only || self.offline {
            return Ok(model);
        }
        let client = Client::new(self, name)?;
        match client.listing(observer) {
            // The branch may have moved on; a file that is there is not fetched anew for that.
            Ok(listing) if needed.is_alone_in(name, wanted.purpose, &listing.names) => Ok(model),
            Ok(listing) => self.fetch_listed(&client, &listing, name, wanted, Trust::Present, observer),
            Err(Error::Cancelled) => Err(Error::Cancelled),
            Err(_) => Ok(model),
        }
    }

    /// A model that is in the cache with all that is wanted of it, as far as the cache tells.
    pub fn cached(&self, name: &HubName, wanted: Wanted) -> Option<Model> {
        self.found(name, wanted).map(|(needed, snapshot)| needed.model(name, &snapshot))
    }

    fn found(&self, name: &HubName, wanted: Wanted) -> Option<(Needed, Snapshot)> {
        let folder = self.cache.join(name.folder());
        let commit = cache::commit_of(&folder, name.revision())?;
        let snapshot = Snapshot::new(folder, commit);
        // Offline, other numbers than were asked for are better than none.
        let wanted = Wanted { exact: wanted.exact && !self.offline, ..wanted };
        let needed = needed::needed(name, &snapshot.names(), &snapshot, wanted, &mut |_| Ok(())).ok()?;
        needed.files.iter().all(|file| snapshot.has(file)).then_some((needed, snapshot))
    }

    /// Asks the hub for a model as it is now and fetches what is not in the cache, or is damaged there.
    ///
    /// # Errors
    /// If the hub is not to be asked, cannot be reached, or does not give the model; if what comes is not whole; if the
    /// repository holds no model that can run; [`Error::Cancelled`] if the observer breaks.
    pub fn fetch(&self, name: &HubName, wanted: Wanted, observer: &mut HubObserver<'_>) -> Result<Model> {
        if self.offline {
            let fix = format!(
                "the hub is not to be asked (`offline` or HF_HUB_OFFLINE) and {} has not all of it; run it once without",
                self.cache.display()
            );
            return Err(Error::missing("the model", name, fix));
        }
        let client = Client::new(self, name)?;
        let listing = client.listing(observer)?;
        self.fetch_listed(&client, &listing, name, wanted, Trust::Intact, observer)
    }

    /// Fetches what is not in the cache of a model whose files the hub has told.
    fn fetch_listed(
        &self,
        client: &Client,
        listing: &Listing,
        name: &HubName,
        wanted: Wanted,
        trust: Trust,
        observer: &mut HubObserver<'_>,
    ) -> Result<Model> {
        let snapshot = Snapshot::new(self.cache.join(name.folder()), listing.commit.clone());
        let get = |file: &str, observer: &mut HubObserver<'_>| {
            let good = snapshot.has(file) && (trust == Trust::Present || snapshot.is_intact(file)?);
            if good { Ok(()) } else { client.fetch(file, &snapshot, observer) }
        };
        // The hub has what it has. Some files say which others are needed.
        let wanted = Wanted { exact: false, ..wanted };
        let needed = needed::needed(name, &listing.names, &snapshot, wanted, &mut |file| get(file, observer))?;
        for file in &needed.files {
            get(file, observer)?;
        }
        if name.revision() != listing.commit {
            let reference = self.cache.join(name.folder()).join("refs").join(name.revision());
            let folder = folder_of(&reference);
            std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
            replace_file(&reference, listing.commit.as_bytes())?;
        }
        Ok(needed.model(name, &snapshot))
    }

    /// The models in the cache, by name.
    ///
    /// # Errors
    /// If the cache is there and cannot be read.
    pub fn list(&self) -> Result<Vec<CachedModel>> {
        cache::list(&self.cache)
    }

    /// The folder of every commit in the cache, with the name that means it.
    ///
    /// # Errors
    /// If the cache is there and cannot be read.
    pub fn snapshots(&self) -> Result<Vec<(HubName, PathBuf)>> {
        let of_model = |model: CachedModel| {
            let folder = self.cache.join(model.name.folder()).join("snapshots");
            let named = |commit: &String| {
                let reference = model.references.iter().find(|(_, at)| at == commit).map(|(name, _)| name);
                (model.at(reference.unwrap_or(commit)), folder.join(commit))
            };
            model.commits.iter().map(named).collect::<Vec<_>>()
        };
        Ok(self.list()?.into_iter().flat_map(of_model).collect())
    }

    /// Takes a model with all its revisions out of the cache; gives the bytes that it took.
    ///
    /// # Errors
    /// If it is not there, or a file cannot be removed.
    pub fn remove(&self, name: &HubName) -> Result<u64> {
        cache::remove(&self.cache, name)
    }
}

impl std::fmt::Debug for Hub {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { cache, endpoint, token: _, offline } = self;
        f.debug_struct("Hub").field("cache", cache).field("endpoint", endpoint).field("offline", offline).finish()
    }
}
