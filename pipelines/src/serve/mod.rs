//! `tweedie serve`: loaded models, a queue of jobs, and interfaces that clients speak.
//!
//! ```text
//! http (own, OpenAI's, A1111's, page) -> Board::admit -> Store: all of a job      Queue: its name
//!                                             ^                                      |
//!        clients <- Board::changed <- Store <- Engine (one thread, Shelf of models) <- work
//! ```
//!
//! A job's options, pictures and state lie in a store, a folder as a rule; a queue hands its name to one worker, in this process or
//! another ([`Server`], [`Worker`]). Seeds are fixed when a job comes in, so a job that is begun again after a crash makes the same
//! pictures.

mod board;
mod engine;
mod failure;
mod http;
mod job;
mod limits;
mod queue;
mod running;
mod shelf;
mod store;
mod worker;

use crate::model::Model;
use board::Board;
use engine::Engine;
pub use failure::{Failure, FailureCode};
pub use http::Access;
use http::{App, router};
pub use limits::Limits;
use queue::Queue;
use shelf::Shelf;
pub use shelf::ShelfOptions;
use std::future::{Future, IntoFuture};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use store::Store;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// How long clients have to read their answers when the server stops.
const STALLED: Duration = Duration::from_secs(10);

/// What a server or a worker needs to be told.
#[derive(Debug, Clone, Default)]
pub struct ServeOptions {
    /// Models by name; the first is what is taken where none is named.
    pub models: Vec<Model>,
    /// A folder of more, with LoRAs in its folder `loras`.
    pub folder: Option<PathBuf>,
    /// How models are loaded.
    pub shelf: ShelfOptions,
    /// Where jobs and pictures lie: a folder, or a URL.
    pub results: String,
    /// Where jobs wait: a file or a URL; without it a file among the results.
    pub queue: Option<String>,
    /// Bounds of requests.
    pub limits: Limits,
    /// Where the operator is told of faults that no client is told of.
    pub log: Option<fn(&str)>,
}

impl ServeOptions {
    async fn open(self) -> Result<Arc<Board>, Failure> {
        let Self { models, folder, shelf, results, queue, limits, log } = self;
        let store = Store::open(&results)?;
        let queue = match queue {
            Some(queue) => Queue::open(&queue).await?,
            None if results.contains("://") => {
                let fix =
                    "with results at a URL give a queue that the machines share, such as postgres://user@host/database";
                return Err(Failure::new(FailureCode::Invalid, format!("the queue is not given; {fix}")));
            }
            None => Queue::open(&PathBuf::from(&results).join("queue.sqlite").to_string_lossy()).await?,
        };
        let shelf = Arc::new(Shelf::new(models, folder.as_deref(), shelf)?);
        Ok(Arc::new(Board::new(store, queue, shelf, limits, log.unwrap_or(|_| {}))))
    }
}

/// A server that listens.
#[derive(Debug)]
pub struct Server {
    board: Arc<Board>,
    access: Access,
    listener: TcpListener,
}

impl Server {
    /// Opens all that is needed, and listens.
    ///
    /// # Errors
    /// If a model, the results, the queue or the address cannot be used.
    pub async fn bind(options: ServeOptions, access: Access, address: SocketAddr) -> Result<Self, Failure> {
        let listener = TcpListener::bind(address).await.map_err(|error| {
            let fix = "give another address with --listen, such as 127.0.0.1:7861";
            Failure::new(FailureCode::Unavailable, format!("cannot listen at {address}: {error}; {fix}"))
        })?;
        Ok(Self { board: options.open().await?, access, listener })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// If the system does not say.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The name of the model that is taken where none is named.
    pub fn default_model(&self) -> &str {
        self.board.shelf.default_name()
    }

    /// Answers clients until `stop` resolves, and works on jobs if `works`. What is worked on then is handed back to the queue. Jobs
    /// that a server before it took and did not bring into the queue are taken up meanwhile.
    ///
    /// # Errors
    /// If the queue cannot be used, or the system has no thread.
    pub async fn run(self, works: bool, stop: impl Future<Output = ()> + Send + 'static) -> Result<(), Failure> {
        let Self { board, access, listener } = self;
        let stopping = board.clone();
        tokio::spawn(async move {
            stop.await;
            stopping.running.stop();
        });
        tokio::spawn(worker::tidy(board.clone()));
        let worker = works.then(|| start_worker(&board)).transpose()?;
        let app = router(Arc::new(App::new(board.clone(), access)));
        let stopped = board.clone();
        let served = axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>())
            .with_graceful_shutdown(async move { stopped.running.stopped().await });
        let stalled = async {
            board.running.stopped().await;
            tokio::time::sleep(STALLED).await;
        };
        tokio::select! {
            served = served.into_future() => {
                served.map_err(|error| Failure::new(FailureCode::Unavailable, format!("the server stopped: {error}")))?;
            }
            // Clients who neither send nor read do not hold it up.
            () = stalled => {}
        }
        match worker {
            Some(worker) => ended(worker).await,
            None => Ok(()),
        }
    }
}

/// A process that works on the jobs of a queue that servers on other machines fill.
#[derive(Debug)]
pub struct Worker {
    board: Arc<Board>,
}

impl Worker {
    /// Opens all that is needed.
    ///
    /// # Errors
    /// If a model, the results or the queue cannot be used.
    pub async fn open(options: ServeOptions) -> Result<Self, Failure> {
        Ok(Self { board: options.open().await? })
    }

    /// Works on jobs until `stop` resolves. What is worked on then is handed back to the queue.
    ///
    /// # Errors
    /// If the queue cannot be used, or the system has no thread.
    pub async fn run(self, stop: impl Future<Output = ()> + Send + 'static) -> Result<(), Failure> {
        let stopping = self.board.clone();
        tokio::spawn(async move {
            stop.await;
            stopping.running.stop();
        });
        ended(start_worker(&self.board)?).await
    }
}

/// How the worker ended.
async fn ended(worker: JoinHandle<Result<(), Failure>>) -> Result<(), Failure> {
    worker
        .await
        .unwrap_or_else(|error| Err(Failure::new(FailureCode::Internal, format!("the worker stopped: {error}"))))
}

/// The task that takes tickets, and the thread that computes. When it ends the process is to stop: without it a server would take
/// jobs for nobody.
fn start_worker(board: &Arc<Board>) -> Result<JoinHandle<Result<(), Failure>>, Failure> {
    let engine = Engine::start(board.clone(), tokio::runtime::Handle::current())
        .map_err(|error| Failure::new(FailureCode::Internal, format!("the system has no thread: {error}")))?;
    let (board, stopping) = (board.clone(), board.clone());
    Ok(tokio::spawn(async move {
        let stopped = stopping.clone();
        let worker = tokio::spawn(worker::work(board, engine, async move { stopped.running.stopped().await }));
        let ended = ended(worker).await;
        stopping.running.stop();
        ended
    }))
}
