//! Where jobs and pictures lie: a folder, or a place that many machines share.

use super::failure::{Failure, FailureCode};
use super::job::{Job, Status};
use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::Path;
use std::sync::Arc;

/// The file of the picture that a job is made from.
pub const IMAGE: &str = "image";
/// The file of its mask.
pub const MASK: &str = "mask";

/// What stands in the place of a URL for a folder.
const SCHEME: &str = "://";

/// The files of all jobs. It is cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    /// What is written here outlasts a loss of power.
    inner: Arc<dyn ObjectStore>,
    /// The same without waiting for that, for what is soon written again.
    quick: Arc<dyn ObjectStore>,
    /// What keys begin with.
    prefix: Key,
}

/// A place could not be read or written.
impl From<object_store::Error> for Failure {
    fn from(error: object_store::Error) -> Self {
        match error {
            object_store::Error::NotFound { path, .. } => {
                Self::new(FailureCode::Missing, format!("there is no {path}"))
            }
            error => Self::new(FailureCode::Unavailable, format!("the place of the results cannot be used: {error}")),
        }
    }
}

impl Store {
    /// Opens a folder, which is made if it is not there, or a URL such as `s3://bucket/folder` (with the feature `s3`), whose keys
    /// come from the environment.
    ///
    /// # Errors
    /// If the folder cannot be made, or the URL is of no kind that is known.
    pub fn open(place: &str) -> Result<Self, Failure> {
        if place.contains(SCHEME) {
            return Self::open_url(place);
        }
        let folder = Path::new(place);
        let fail = |error: &dyn std::fmt::Display| {
            Failure::new(
                FailureCode::Unavailable,
                format!("the folder of the results, {place}, cannot be used: {error}"),
            )
        };
        std::fs::create_dir_all(folder).map_err(|error| fail(&error))?;
        let open = || LocalFileSystem::new_with_prefix(folder).map_err(|error| fail(&error));
        // Folders of jobs that were deleted go too.
        let inner = Arc::new(open()?.with_automatic_cleanup(true).with_fsync(true));
        Ok(Self { inner, quick: Arc::new(open()?), prefix: Key::default() })
    }

    fn open_url(place: &str) -> Result<Self, Failure> {
        let fail = |reason: String| {
            let fix = "give a folder, or s3://bucket/folder in a build with --features s3";
            Failure::new(FailureCode::Unavailable, format!("the place of the results is {place}: {reason}; {fix}"))
        };
        let url = url::Url::parse(place).map_err(|error| fail(error.to_string()))?;
        let options = std::env::vars().map(|(name, value)| (name.to_lowercase(), value));
        let (inner, prefix) = object_store::parse_url_opts(&url, options).map_err(|error| fail(error.to_string()))?;
        let inner: Arc<dyn ObjectStore> = inner.into();
        Ok(Self { quick: inner.clone(), inner, prefix })
    }

    fn key(&self, name: &str) -> Key {
        match self.prefix.as_ref() {
            "" => Key::from(name),
            prefix => Key::from(format!("{prefix}/{name}")),
        }
    }

    /// The bytes of a file, if it is there.
    ///
    /// # Errors
    /// If the place cannot be read.
    pub async fn get(&self, name: &str) -> Result<Option<Bytes>, Failure> {
        match self.inner.get(&self.key(name)).await {
            Ok(found) => Ok(Some(found.bytes().await?)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether a file is there.
    ///
    /// # Errors
    /// If the place cannot be read.
    pub async fn exists(&self, name: &str) -> Result<bool, Failure> {
        match self.inner.head(&self.key(name)).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes a file, whole or not at all, in place of one of that name.
    ///
    /// # Errors
    /// If the place cannot be written.
    pub async fn put(&self, name: &str, bytes: impl Into<Bytes>) -> Result<(), Failure> {
        self.inner.put(&self.key(name), bytes.into().into()).await?;
        Ok(())
    }

    /// The same of what is soon written again: a loss of power may take it.
    ///
    /// # Errors
    /// If the place cannot be written.
    pub async fn put_quickly(&self, name: &str, bytes: impl Into<Bytes>) -> Result<(), Failure> {
        self.quick.put(&self.key(name), bytes.into().into()).await?;
        Ok(())
    }

    /// Writes a file unless there is one of that name; of many who try, one does. Whether it was this one.
    ///
    /// # Errors
    /// If the place cannot be written.
    pub async fn put_new(&self, name: &str, bytes: impl Into<Bytes>) -> Result<bool, Failure> {
        let options = PutOptions::from(PutMode::Create);
        match self.inner.put_opts(&self.key(name), bytes.into().into(), options).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes a file, if it is there.
    ///
    /// # Errors
    /// If the place cannot be written.
    pub async fn remove(&self, name: &str) -> Result<(), Failure> {
        match self.inner.delete(&self.key(name)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Failure> {
        let Some(bytes) = self.get(name).await? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| {
            Failure::new(FailureCode::Internal, format!("{name} among the results is damaged: {error}; delete its job"))
        })
    }

    /// Writes a new job with its first state, and the pictures that it is made from; false if there is one of that name.
    ///
    /// # Errors
    /// If the place cannot be written.
    pub async fn add(&self, job: &Job, image: Option<Bytes>, mask: Option<Bytes>) -> Result<bool, Failure> {
        for (name, bytes) in [(IMAGE, image), (MASK, mask)] {
            if let Some(bytes) = bytes {
                self.put(&of_job(&job.id, name), bytes).await?;
            }
        }
        // Last: what has this file is whole. Without a state a job waits.
        self.put_new(&of_job(&job.id, "job.json"), json(job)?).await
    }

    /// A picture that a job is made from, [`IMAGE`] or [`MASK`].
    ///
    /// # Errors
    /// If the place cannot be read.
    pub async fn input(&self, id: &str, name: &str) -> Result<Option<Bytes>, Failure> {
        self.get(&of_job(id, name)).await
    }

    /// What was asked for in a job.
    ///
    /// # Errors
    /// If there is no such job.
    pub async fn job(&self, id: &str) -> Result<Job, Failure> {
        let missing = || Failure::new(FailureCode::Missing, format!("there is no job {id}"));
        // An id is a word, so that it names nothing else in the store.
        if !is_id(id) {
            return Err(missing());
        }
        self.read(&of_job(id, "job.json")).await?.ok_or_else(missing)
    }

    /// How far a job is.
    ///
    /// # Errors
    /// If the place cannot be read.
    pub async fn status(&self, id: &str) -> Result<Status, Failure> {
        Ok(self.read(&of_job(id, "state.json")).await?.unwrap_or_default())
    }

    /// Writes how far a job is.
    ///
    /// # Errors
    /// If the place cannot be written.
    pub async fn set_status(&self, id: &str, status: &Status) -> Result<(), Failure> {
        let name = of_job(id, "state.json");
        match status.state.is_final() {
            true => self.put(&name, json(status)?).await,
            false => self.put_quickly(&name, json(status)?).await,
        }
    }

    /// The names of all jobs, newest first.
    ///
    /// # Errors
    /// If the place cannot be read.
    pub async fn ids(&self) -> Result<Vec<String>, Failure> {
        let listed = self.inner.list_with_delimiter(Some(&self.key("jobs"))).await?;
        let names = listed.common_prefixes.iter().filter_map(|key| key.filename());
        let mut ids: Vec<String> = names.filter(|name| is_id(name)).map(str::to_owned).collect();
        ids.sort_unstable_by(|a, b| b.cmp(a));
        Ok(ids)
    }

    /// Counts that a job is begun: the number of this time, from 1, or nothing if it was begun `most` times already.
    ///
    /// # Errors
    /// If the place cannot be written.
    pub async fn begin(&self, id: &str, most: u32) -> Result<Option<u32>, Failure> {
        for attempt in 1..=most {
            if self.put_new(&of_job(id, &format!("attempt-{attempt}")), Bytes::new()).await? {
                return Ok(Some(attempt));
            }
        }
        Ok(None)
    }

    /// That the attempt of that number was ended in order and does not count.
    ///
    /// # Errors
    /// If the place cannot be written.
    pub async fn take_back(&self, id: &str, attempt: u32) -> Result<(), Failure> {
        self.remove(&of_job(id, &format!("attempt-{attempt}"))).await
    }

    /// Asks for the end of a job, wherever it is worked on.
    ///
    /// # Errors
    /// If the place cannot be written.
    pub async fn ask_cancel(&self, id: &str) -> Result<(), Failure> {
        self.put(&of_job(id, "cancel"), Bytes::new()).await
    }

    /// Whether somebody asked for its end.
    ///
    /// # Errors
    /// If the place cannot be read.
    pub async fn cancel_is_asked(&self, id: &str) -> Result<bool, Failure> {
        self.exists(&of_job(id, "cancel")).await
    }

    /// Removes all files of a job.
    ///
    /// # Errors
    /// If the place cannot be written.
    pub async fn delete(&self, id: &str) -> Result<(), Failure> {
        let files: Vec<_> = self.inner.list(Some(&self.key(&format!("jobs/{id}")))).try_collect().await?;
        // What was asked for goes last: as long as it is there the job can be deleted again.
        let last = self.key(&of_job(id, "job.json"));
        for file in files.iter().filter(|file| file.location != last) {
            self.inner.delete(&file.location).await?;
        }
        self.remove(&of_job(id, "job.json")).await
    }
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(value)
        .map_err(|error| Failure::new(FailureCode::Internal, format!("a job cannot be written: {error}")))
}

/// A file of a job.
pub fn of_job(id: &str, name: &str) -> String {
    format!("jobs/{id}/{name}")
}

/// The file of a job's picture.
pub fn picture_name(id: &str, index: usize) -> String {
    of_job(id, &format!("{index}.png"))
}

/// Whether a text is a job's name and nothing more.
pub fn is_id(text: &str) -> bool {
    text.len() == 26 && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::job::{JobKind, now};

    fn job(id: &str) -> Job {
        Job {
            id: id.into(),
            created: now(),
            client: "me".into(),
            kind: JobKind::Txt2img,
            model: "emoji-ldm".into(),
            priority: 0,
            request: Default::default(),
            image: None,
            mask: None,
            key: None,
        }
    }

    #[tokio::test]
    async fn jobs_are_listed_newest_first_counted_and_deleted() -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let store = Store::open(&folder.path().join("new").to_string_lossy())?;
        let ids = ["01J0000000000000000000000A", "01J0000000000000000000000B"];
        for id in ids {
            assert!(store.add(&job(id), Some(Bytes::from_static(b"picture")), None).await?);
        }
        assert_eq!(store.ids().await?, [ids[1], ids[0]]);
        assert_eq!(store.job(ids[0]).await?.id, ids[0]);
        assert_eq!(store.input(ids[0], IMAGE).await?.as_deref(), Some(&b"picture"[..]));
        assert_eq!(store.input(ids[0], MASK).await?, None);
        let begun = [store.begin(ids[0], 2).await?, store.begin(ids[0], 2).await?, store.begin(ids[0], 2).await?];
        assert_eq!(begun, [Some(1), Some(2), None]);
        store.take_back(ids[0], 2).await?;
        assert_eq!(store.begin(ids[0], 2).await?, Some(2));
        store.delete(ids[0]).await?;
        assert_eq!(store.ids().await?, [ids[1]]);
        assert!(store.job(ids[0]).await.is_err());
        Ok(())
    }

    #[tokio::test]
    async fn names_of_jobs_name_nothing_else() -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("job.json"), "{}")?;
        let store = Store::open(&folder.path().join("results").to_string_lossy())?;
        for id in ["..", "../..", "%2e%2e", "", "01j0000000000000000000000a", "01J0000000000000000000000/"] {
            assert!(store.job(id).await.is_err(), "{id}");
        }
        Ok(())
    }

    #[tokio::test]
    async fn of_many_who_write_a_new_file_one_does() -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let store = Store::open(&folder.path().to_string_lossy())?;
        let tries = (0..16u8).map(|i| {
            let store = store.clone();
            tokio::spawn(async move { store.put_new("keys/a", vec![i]).await })
        });
        let mut won = 0;
        for tried in tries.collect::<Vec<_>>() {
            won += usize::from(tried.await??);
        }
        assert_eq!(won, 1);
        Ok(())
    }
}
