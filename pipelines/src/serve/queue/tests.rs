//! What the queue promises, on SQLite; `.ci/clients/run load` sees it hold between processes that are killed, on Postgres too.

use super::{Outcome, Queue, QueueError, Ticket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

type TestResult<T = ()> = Result<T, Box<dyn std::error::Error>>;

fn ticket(job: &str) -> Ticket {
    Ticket { job: job.to_owned() }
}

async fn waiting(queue: &Queue) -> TestResult<Vec<String>> {
    Ok(queue.waiting().await?.into_iter().map(|ticket| ticket.job).collect())
}

/// A queue in a file of its own.
async fn queue() -> TestResult<(tempfile::TempDir, Queue)> {
    let folder = tempfile::tempdir()?;
    let queue = Queue::open(&folder.path().join("queue.sqlite").to_string_lossy()).await?;
    Ok((folder, queue))
}

/// The jobs that a worker began, in their order.
#[derive(Clone, Default)]
struct Begun(Arc<Mutex<Vec<String>>>);

impl Begun {
    fn add(&self, job: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(job);
    }

    fn all(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Once so many were begun.
    async fn until(&self, count: usize) -> TestResult {
        let start = Instant::now();
        while self.all().len() < count {
            if start.elapsed() > Duration::from_secs(60) {
                return Err(format!("only {:?} were begun", self.all()).into());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }
}

/// A worker that can be asked to stop.
struct Work {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), QueueError>>,
}

impl Work {
    fn start<F, Fut>(queue: &Queue, handler: F) -> Self
    where
        F: Fn(Ticket) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Outcome> + Send + 'static,
    {
        let (stop, stopped) = oneshot::channel();
        let queue = queue.clone();
        let stopped = async move {
            let _ = stopped.await;
        };
        Self { stop, task: tokio::spawn(async move { queue.work(handler, stopped).await }) }
    }

    async fn stop(self) -> TestResult {
        let _ = self.stop.send(());
        Ok(self.task.await??)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tickets_go_by_priority_then_age() -> TestResult {
    let (_folder, queue) = queue().await?;
    for (job, priority) in [("a", 0), ("b", 5), ("c", -3), ("d", 5), ("e", 0), ("f", i32::MAX), ("g", i32::MIN)] {
        queue.push(&ticket(job), priority).await?;
    }
    // Many within a millisecond.
    let many: Vec<String> = (0..30).map(|n| format!("m{n}")).collect();
    for job in &many {
        queue.push(&ticket(job), 1).await?;
    }
    let mut expected = vec!["f", "b", "d"];
    expected.extend(many.iter().map(String::as_str));
    expected.extend(["a", "e", "c", "g"]);
    assert_eq!(waiting(&queue).await?, expected);
    let begun = Begun::default();
    let seen = begun.clone();
    let work = Work::start(&queue, move |ticket| {
        seen.add(ticket.job);
        async { Outcome::Done }
    });
    begun.until(expected.len()).await?;
    work.stop().await?;
    assert_eq!(begun.all(), expected);
    assert!(waiting(&queue).await?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_is_worked_on_at_a_time_and_nothing_is_taken_in_advance() -> TestResult {
    let (_folder, queue) = queue().await?;
    for job in ["a", "b"] {
        queue.push(&ticket(job), 0).await?;
    }
    let (begun, now, most) = (Begun::default(), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let work = Work::start(&queue, {
        let (begun, now, most) = (begun.clone(), now.clone(), most.clone());
        move |ticket: Ticket| {
            let (now, most) = (now.clone(), most.clone());
            begun.add(ticket.job);
            async move {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(700)).await;
                now.fetch_sub(1, Ordering::SeqCst);
                Outcome::Done
            }
        }
    });
    begun.until(1).await?;
    queue.push(&ticket("urgent"), 9).await?;
    assert_eq!(waiting(&queue).await?, ["urgent", "b"]);
    assert_eq!((queue.count().await?, queue.has("a").await?, queue.has("never").await?), (2, true, false));
    // What is worked on cannot be taken out, what waits can, once.
    assert!(!queue.remove("a").await?);
    assert!(queue.remove("b").await? && !queue.remove("b").await? && !queue.remove("never").await?);
    begun.until(2).await?;
    work.stop().await?;
    assert_eq!((begun.all(), most.load(Ordering::SeqCst)), (vec!["a".to_owned(), "urgent".into()], 1));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_handed_back_keeps_its_place() -> TestResult {
    let (_folder, queue) = queue().await?;
    queue.push(&ticket("first"), 7).await?;
    queue.push(&ticket("second"), 3).await?;
    let begun = Begun::default();
    let seen = begun.clone();
    let work = Work::start(&queue, move |ticket| {
        seen.add(ticket.job);
        async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            Outcome::HandBack
        }
    });
    begun.until(1).await?;
    work.stop().await?;
    assert_eq!(begun.all(), ["first"], "a worker that stops takes nothing more");
    assert_eq!(waiting(&queue).await?, ["first", "second"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_panics_is_called_again() -> TestResult {
    let (_folder, queue) = queue().await?;
    queue.push(&ticket("a"), 0).await?;
    let begun = Begun::default();
    let seen = begun.clone();
    let work = Work::start(&queue, move |ticket| {
        seen.add(ticket.job);
        let count = seen.all().len();
        async move {
            assert!(count == 2, "as the test wants it");
            Outcome::Done
        }
    });
    begun.until(2).await?;
    work.stop().await?;
    assert!(waiting(&queue).await?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn tickets_are_there_when_the_file_is_opened_again() -> TestResult {
    let (folder, queue) = queue().await?;
    queue.push(&ticket("a"), 0).await?;
    drop(queue);
    let queue = Queue::open(&format!("sqlite:{}", folder.path().join("queue.sqlite").display())).await?;
    queue.vacuum().await?;
    assert_eq!(waiting(&queue).await?, ["a"]);
    Ok(())
}

#[tokio::test]
async fn places_that_are_none_are_named_without_their_passwords() {
    for (place, parts) in [
        ("sqlite::memory:", ["sqlite::memory:", "name a file"]),
        ("mysql://me:secret@host/db", ["mysql://host/db", "name a file"]),
        ("/nowhere/at/all/queue.sqlite", ["/nowhere/at/all/queue.sqlite", "write"]),
        #[cfg(not(feature = "postgres"))]
        ("postgres://me:secret@host/db", ["postgres://host/db", "--features postgres"]),
    ] {
        let message = Queue::open(place).await.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(parts.iter().all(|part| message.contains(part)) && !message.contains("secret"), "{place}: {message}");
    }
}
