//! `tweedie serve` and `tweedie worker`.

use super::failure::wrong_usage;
use super::fetching::Fetching;
use super::interrupt::Interrupt;
use super::source::{OfflineOption, Source};
use super::{ADVANCED, print};
use clap::Args;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tweedie_pipelines::serve::{Access, Limits, ServeOptions, Server, ShelfOptions, Worker};
use tweedie_pipelines::{DTypeChoice, DeviceChoice, Purpose};

/// How often it is looked at whether the user asked to stop.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The models, and where jobs wait and pictures lie.
#[derive(Debug, Args)]
struct Places {
    /// A model, in every form that txt2img's --model takes; the first of several is what is taken where a request names none
    /// [default: the embedded model]
    #[arg(long, short, value_name = "MODEL", help_heading = "Models")]
    model: Vec<PathBuf>,

    /// A folder of models that requests may name, with LoRAs in its folder loras
    #[arg(long, value_name = "DIR", help_heading = "Models")]
    models: Option<PathBuf>,

    /// Keep loaded models within so many megabytes of weights as they are stored; the one that was used longest ago goes first
    /// [default: half of what is free]
    #[arg(long, value_name = "MB", help_heading = "Models")]
    model_memory: Option<u64>,

    /// Where to compute: auto, cpu, cuda, cuda:N or metal
    #[arg(long, default_value = "auto", help_heading = "Models")]
    device: DeviceChoice,

    /// Number format of the weights: auto, f32, f16, bf16 or q8
    #[arg(long, default_value = "auto", help_heading = "Models")]
    dtype: DTypeChoice,

    /// Where jobs and their pictures lie: a folder, or s3://bucket/folder in a build with --features s3
    #[arg(long, value_name = "PLACE", default_value = "tweedie-results", help_heading = "Jobs")]
    results: String,

    /// Where jobs wait: a file, or postgres://user:password@host/database in a build with --features postgres
    /// [default: queue.sqlite among the results]
    #[arg(long, value_name = "PLACE", help_heading = "Jobs")]
    queue: Option<String>,

    /// The largest picture, in pixels
    #[arg(long, value_name = "N", default_value_t = Limits::default().pixels, help_heading = "Limits")]
    max_pixels: usize,

    /// The most steps of a picture
    #[arg(long, value_name = "N", default_value_t = Limits::default().steps, help_heading = "Limits")]
    max_steps: usize,

    /// The most pictures of a request
    #[arg(long, value_name = "N", default_value_t = Limits::default().images, help_heading = "Limits")]
    max_images: usize,

    /// Set a job aside that was begun so often, each time ending with its process
    #[arg(long, value_name = "N", default_value_t = Limits::default().attempts, help_heading = "Limits")]
    max_attempts: u32,

    #[command(flatten)]
    offline: OfflineOption,
}

#[derive(Debug, Args)]
pub struct Serve {
    #[command(flatten)]
    places: Places,

    /// Where to listen; any address but this machine's own needs --api-key or --no-auth
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:7860", help_heading = "Access")]
    listen: SocketAddr,

    /// The key that clients must send, as `Authorization: Bearer KEY` or as a password [default: TWEEDIE_API_KEY]
    #[arg(long, value_name = "KEY", help_heading = "Access")]
    api_key: Option<String>,

    /// Let everybody ask who can reach the address
    #[arg(long, conflicts_with = "api_key", help_heading = "Access")]
    no_auth: bool,

    /// A name that this machine is called by, beside its addresses and localhost
    #[arg(long, value_name = "NAME", help_heading = "Access")]
    allow_host: Vec<String>,

    /// A site whose pages may ask, such as https://example.org
    #[arg(long, value_name = "SITE", help_heading = "Access")]
    allow_origin: Vec<String>,

    /// Take jobs and leave them to workers
    #[arg(long, help_heading = "Jobs")]
    no_work: bool,

    /// Refuse jobs when so many wait
    #[arg(long, value_name = "N", default_value_t = Limits::default().waiting, help_heading = "Limits")]
    max_waiting: usize,

    /// The largest request, in megabytes
    #[arg(long, value_name = "MB", default_value_t = Limits::default().body >> 20, help_heading = "Limits")]
    max_request: usize,

    /// Show nothing but errors
    #[arg(long, short, help_heading = ADVANCED)]
    quiet: bool,
}

#[derive(Debug, Args)]
pub struct WorkerArguments {
    #[command(flatten)]
    places: Places,

    /// Show nothing but errors
    #[arg(long, short, help_heading = ADVANCED)]
    quiet: bool,
}

impl Places {
    fn options(&self, interrupt: &Interrupt, of_server: Limits, quiet: bool) -> anyhow::Result<ServeOptions> {
        let fetching = Fetching { interrupt, quiet };
        let offline = self.offline.offline();
        let source = Source { dtype: self.dtype, device: self.device, offline, fetching: &fetching };
        let models = self.model.iter().map(|path| source.open(path, None, Purpose::Model)).collect::<Result<_, _>>()?;
        let budget = self.model_memory.map(|megabytes| megabytes.saturating_mul(1_000_000));
        Ok(ServeOptions {
            models,
            folder: self.models.clone(),
            shelf: ShelfOptions { device: self.device, dtype: self.dtype, budget },
            results: self.results.clone(),
            queue: self.queue.clone(),
            limits: Limits {
                pixels: self.max_pixels,
                steps: self.max_steps,
                images: self.max_images,
                attempts: self.max_attempts,
                ..of_server
            },
            log: Some(print::remark),
        })
    }
}

impl Serve {
    pub fn run(&self) -> anyhow::Result<()> {
        let in_environment = || std::env::var("TWEEDIE_API_KEY").ok().filter(|_| !self.no_auth);
        let key = self.api_key.clone().or_else(in_environment);
        if !self.listen.ip().is_loopback() && key.is_none() && !self.no_auth {
            wrong_usage!(
                "--listen is {}, which others can reach; give --api-key KEY, or --no-auth to let everybody ask",
                self.listen
            );
        }
        if key.as_ref().is_some_and(String::is_empty) {
            wrong_usage!("the key is empty; give one with --api-key");
        }
        let limits =
            Limits { waiting: self.max_waiting, body: self.max_request.saturating_mul(1 << 20), ..Limits::default() };
        let interrupt = Interrupt::listen_as_service()?;
        let options = self.places.options(&interrupt, limits, self.quiet)?;
        let (hosts, origins) = (self.allow_host.clone(), self.allow_origin.clone());
        let access = Access { key, hosts, origins };
        runtime()?.block_on(async {
            let server = Server::bind(options, access, self.listen).await?;
            if !self.quiet {
                print::remark(&format!("the page is at http://{}/; Ctrl-C stops", server.address()?));
                print::remark(&format!(
                    "model {}; jobs and pictures in {}",
                    server.default_model(),
                    self.places.results
                ));
            }
            Ok(server.run(!self.no_work, asked(interrupt)).await?)
        })
    }
}

impl WorkerArguments {
    pub fn run(&self) -> anyhow::Result<()> {
        let interrupt = Interrupt::listen_as_service()?;
        let options = self.places.options(&interrupt, Limits::default(), self.quiet)?;
        runtime()?.block_on(async {
            let worker = Worker::open(options).await?;
            if !self.quiet {
                print::remark("waiting for jobs; Ctrl-C stops");
            }
            Ok(worker.run(asked(interrupt)).await?)
        })
    }
}

/// Resolves once the user asked to stop.
async fn asked(interrupt: Interrupt) {
    while interrupt.flow().is_continue() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The tasks that answer clients have two threads: what takes long runs elsewhere.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()
}
