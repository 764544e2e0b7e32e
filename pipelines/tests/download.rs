//! Downloads, from a small server on the loopback address.
#![cfg(feature = "download")]

mod server;
mod tweedie;

use ::tweedie::training::data::{Split, read_idx};
use flate2::{Compression, write::GzEncoder};
use server::{Answer, Server};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;
use tweedie::{TestResult, Tweedie};
use tweedie_pipelines::download::{DownloadEvent, MNIST, RemoteFile, fetch};

/// A server that has these files; paths that it does not know are not found.
fn start(answers: HashMap<String, Answer>) -> TestResult<Server> {
    Server::start(move |request| answers.get(&request.path).cloned().unwrap_or_else(Answer::not_found))
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A small set in IDX form: names, and contents before compression.
fn contents() -> Vec<(&'static str, Vec<u8>)> {
    let images = |count: u8| {
        let dims = [0x803u32, u32::from(count), 2, 2].into_iter().flat_map(u32::to_be_bytes);
        dims.chain((0..4 * count).map(|v| v * 5)).collect::<Vec<u8>>()
    };
    let labels = |count: u8| {
        let dims = [0x801u32, u32::from(count)].into_iter().flat_map(u32::to_be_bytes);
        dims.chain((0..count).map(|v| v % 2)).collect::<Vec<u8>>()
    };
    let parts = [images(3), labels(3), images(2), labels(2)];
    MNIST.iter().map(|file| file.name).zip(parts).collect()
}

fn gzip(bytes: &[u8]) -> TestResult<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

/// Fetches the small set from a server on which `change` had its way.
fn run(
    folder: &Path,
    change: impl Fn(&mut HashMap<String, Answer>),
) -> TestResult<(Server, Result<Vec<String>, String>)> {
    let contents = contents();
    let mut answers = HashMap::new();
    for (name, bytes) in &contents {
        answers.insert(format!("/mnist/{name}"), Answer::file(gzip(bytes)?));
    }
    change(&mut answers);
    let server = start(answers)?;
    let sums: Vec<String> = contents.iter().map(|(_, bytes)| sha256(bytes)).collect();
    let files: Vec<RemoteFile> =
        contents.iter().zip(&sums).map(|((name, _), sha256)| RemoteFile { name, sha256 }).collect();
    let mut events = Vec::new();
    let result = fetch(&files, &format!("{}/mnist/", server.base), folder, &mut |event| {
        match event {
            DownloadEvent::Saved(name) => events.push(format!("saved {name}")),
            DownloadEvent::Present(name) => events.push(format!("present {name}")),
            DownloadEvent::Progress { done, total, .. } => assert!(total.is_some_and(|total| done <= total)),
        }
        ControlFlow::Continue(())
    });
    Ok((server, result.map(|()| events).map_err(|e| e.to_string())))
}

fn names(folder: &Path) -> TestResult<Vec<String>> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder)?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Ok(names)
}

#[test]
fn four_files_come_and_are_not_fetched_twice() -> TestResult {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("new/mnist");
    let (server, events) = run(&data, |_| ())?;
    assert_eq!(events?.len(), 4);
    assert_eq!(server.asked().len(), 4);
    assert_eq!(read_idx(&data, Split::Train)?.labels(), Some(&[0, 1, 0][..]));
    assert_eq!(read_idx(&data, Split::Test)?.len(), 2);
    let (server, events) = run(&data, |_| ())?;
    assert!(events?.iter().all(|event| event.starts_with("present")));
    assert!(server.asked().is_empty());
    Ok(())
}

/// Also one that was decompressed.
#[test]
fn what_is_there_is_kept_if_it_is_right() -> TestResult {
    let folder = tempfile::tempdir()?;
    let (name, bytes) = contents().swap_remove(0);
    std::fs::write(folder.path().join(name.trim_end_matches(".gz")), bytes)?;
    let (server, events) = run(folder.path(), |_| ())?;
    assert_eq!(events?[0], format!("present {name}"));
    assert_eq!(server.asked().len(), 3);

    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join(name), b"my own notes")?;
    let (server, message) = run(folder.path(), |_| ())?;
    let message = message.err().ok_or("it was overwritten")?;
    assert!(message.contains(name) && message.contains("move it away"), "{message}");
    assert_eq!(std::fs::read(folder.path().join(name))?, b"my own notes");
    assert!(server.asked().is_empty());
    Ok(())
}

#[test]
fn a_download_that_fails_leaves_what_was_whole() -> TestResult {
    let first = contents()[0].0;
    let second = contents()[1].0;
    let path = format!("/mnist/{second}");
    let cut = gzip(&contents()[1].1)?;
    let changed = gzip(b"something else")?;
    let cases: [(Option<Answer>, &[&str]); 4] = [
        (Some(Answer::file(changed)), &["SHA-256", "another file", "`mirror`"]),
        (Some(Answer::file(&cut[..cut.len() - 3])), &["damaged"]),
        (Some(Answer::cut(cut.clone())), &["connection", "run it again"]),
        (None, &["404", "`mirror`"]),
    ];
    for (answer, parts) in cases {
        let folder = tempfile::tempdir()?;
        let (_, message) = run(folder.path(), |answers| {
            match answer.clone() {
                Some(answer) => answers.insert(path.clone(), answer),
                None => answers.remove(&path),
            };
        })?;
        let message = message.err().ok_or("it was accepted")?;
        parts.iter().for_each(|part| assert!(message.contains(part), "`{part}` is not in: {message}"));
        assert!(message.contains(second), "{message}");
        assert_eq!(names(folder.path())?, [first], "nothing half is left");
        // The next try goes on.
        let (server, events) = run(folder.path(), |_| ())?;
        assert_eq!(events?.len(), 4);
        assert_eq!(server.asked().len(), 3);
    }
    Ok(())
}

#[test]
fn redirects_are_followed() -> TestResult {
    let folder = tempfile::tempdir()?;
    let (name, bytes) = contents().swap_remove(2);
    let other = start([("/there".to_owned(), Answer::file(gzip(&bytes)?))].into())?;
    let (_, events) = run(folder.path(), |answers| {
        answers.insert(format!("/mnist/{name}"), Answer::elsewhere(format!("{}/there", other.base)));
    })?;
    assert_eq!(events?.len(), 4);
    assert_eq!(other.asked(), ["/there"]);
    Ok(())
}

/// The program asks for MNIST's four files and knows that these are others.
#[test]
fn the_program_fetches_from_the_mirror_it_is_given() -> TestResult {
    let mut answers = HashMap::new();
    for (name, bytes) in contents() {
        answers.insert(format!("/{name}"), Answer::file(gzip(&bytes)?));
    }
    let server = start(answers)?;
    let program = Tweedie::new()?;
    let arguments = ["train", "classifier", "--data", "d", "--output", "run", "--download", "--quiet"];
    let environment = [("TWEEDIE_MNIST_MIRROR", server.base.as_str())];
    program.run_with(&arguments, &environment)?.fails(1, &["SHA-256", "ba891046e6505d7a", "--mirror"])?;
    assert_eq!(server.asked(), ["/train-images-idx3-ubyte.gz"]);
    let nowhere = [&arguments[..], &["--mirror", "ftp://x"]].concat();
    program.run(&nowhere)?.fails(2, &["ftp://x", "https://"])?;
    Ok(())
}

/// With the real files at hand, in a folder that the environment names, the whole way is walked.
#[test]
fn real_files_are_known() -> TestResult {
    let Some(mnist) = std::env::var_os("TWEEDIE_MNIST") else { return Ok(()) };
    let mut answers = HashMap::new();
    for file in MNIST {
        answers.insert(format!("/{}", file.name), Answer::file(std::fs::read(Path::new(&mnist).join(file.name))?));
    }
    let server = start(answers)?;
    let folder = tempfile::tempdir()?;
    fetch(&MNIST, &server.base, folder.path(), &mut |_| ControlFlow::Continue(()))?;
    assert_eq!(read_idx(folder.path(), Split::Train)?.len(), 60_000);
    Ok(())
}
