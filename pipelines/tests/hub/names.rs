//! What a name stands for.

use super::fake::{
    Cache, Files, NOBODY, UNET, WHOLE, fetch, files_of, hub_answer, hub_with, small_model, some_model, txt2img,
};
use super::server::Server;
use super::tweedie::{TestResult, Tweedie, copy_folder, golden, pixels};
use serde_json::json;
use tweedie_pipelines::Model;

#[test]
fn shards_one_file_and_a_lone_autoencoder_come_too() -> TestResult {
    let mut files = small_model()?;
    let unet = files.remove(UNET).ok_or("no unet")?;
    let index = json!({"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}).to_string();
    files.insert(format!("{UNET}.index.json"), index.into_bytes());
    files.insert("unet/part-1.safetensors".into(), unet.clone());
    files.insert("unet/part-2.safetensors".into(), vec![1; 50]);
    let (cache, server) = (Cache::new()?, hub_with(files, |_| None)?);
    let Model::Cached { name: called, folder } = fetch(&cache.hub(&server.base), WHOLE)? else {
        return Err("a folder was expected".into());
    };
    assert_eq!(called, "some/model");
    assert!(folder.join("unet/part-1.safetensors").is_file() && folder.join("unet/part-2.safetensors").is_file());
    std::fs::remove_file(folder.join("unet/part-2.safetensors"))?;
    assert!(cache.hub(NOBODY).cached(&some_model()?, WHOLE).is_none(), "a part is missing");

    // Pickles and GGUF beside it are other forms of it.
    let others =
        ["README.md", "model-v1.ckpt", "model-Q4_0.gguf", "model-Q8_0.gguf"].map(|name| (name.into(), vec![1]));
    let single = Files::from_iter(others.into_iter().chain([("model-v1.safetensors".into(), unet.clone())]));
    let (cache, server) = (Cache::new()?, hub_with(single, |_| None)?);
    let Model::File { path, config: None } = fetch(&cache.hub(&server.base), WHOLE)? else {
        return Err("a file was expected".into());
    };
    assert_eq!(std::fs::read(&path)?, unet);
    assert!(cache.hub(NOBODY).cached(&some_model()?, WHOLE).is_some());

    let vae = files_of(&golden().join("models/sd15/vae"))?;
    let (cache, server) = (Cache::new()?, hub_with(vae, |_| None)?);
    let direct = golden().join("models/sd15").to_string_lossy().into_owned();
    let with_vae = ["--model", &direct, "--vae", "some/model"];
    let tweedie = Tweedie::new()?;
    cache.run(&tweedie, &server.base, &txt2img(&with_vae))?.success()?;
    let first = pixels(&tweedie.path("out.png"))?;
    cache.run(&tweedie, NOBODY, &txt2img(&["--force", "--model", &direct]))?.success()?;
    assert!(first == pixels(&tweedie.path("out.png"))?, "it is the model's own");
    Ok(())
}

/// What goes on top of a model, each by the name of a repository, or of one file in it.
#[test]
fn adapters_and_control_models_come_by_name() -> TestResult {
    let models = golden().join("models");
    let read = |path: &str| std::fs::read(models.join(path));
    let weights = "diffusion_pytorch_model.safetensors";
    let files = Files::from([
        ("config.json".into(), read("controlnet/config.json")?),
        (weights.into(), read(&format!("controlnet/{weights}"))?),
        ("pytorch_lora_weights.safetensors".into(), read("lora/kohya.safetensors")?),
        ("learned_embeds.bin".into(), read("embedding/thing.bin")?),
        ("more/deep/taesd.safetensors".into(), read(&format!("taesd/{weights}"))?),
        ("more/word.pt".into(), read("embedding/thing.pt")?),
    ]);
    let (cache, server) = (Cache::new()?, hub_with(files, |_| None)?);
    let tweedie = Tweedie::new()?;
    image::RgbImage::from_fn(64, 64, |x, y| image::Rgb([x as u8 * 4, y as u8 * 4, 90]))
        .save(tweedie.path("photo.png"))?;
    let model = models.join("sd15").to_string_lossy().into_owned();
    let at = |path: &str| models.join(path).to_string_lossy().into_owned();
    let draw = |base: &str, more: &[String]| -> TestResult<_> {
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        cache.run(&tweedie, base, &txt2img(&[&["--force", "--model", &model], &more[..]].concat()))?.success()?;
        pixels(&tweedie.path("out.png"))
    };
    let options = |lora: &str, word: &str, control: &str, vae: &str| {
        [
            format!("--lora={lora}:0.4"),
            format!("--embedding={word}:<word>"),
            format!("--control={control}:photo.png:0.6"),
            format!("--vae={vae}"),
            format!("--preview-vae={vae}"),
            "--save-steps=steps".into(),
            "--negative-prompt=a <word>".into(),
        ]
    };
    let local = options(&at("lora/kohya.safetensors"), &at("embedding/thing.pt"), &at("controlnet"), &at("taesd"));
    let expected = draw(NOBODY, &local)?;
    let taesd = "some/model/more/deep/taesd.safetensors";
    let named = options("some/model", "some/model", "some/model", taesd);
    assert!(draw(&server.base, &named)? == expected);
    assert!(!server.asked().iter().any(|path| path.ends_with("word.pt")), "what is not asked for stays there");
    // Then without network; another file of the same repository is not in the cache.
    let offline = [&named[..], &["--offline".into()]].concat();
    assert!(draw(NOBODY, &offline)? == expected);
    let word = ["--model", &model, "--embedding=some/model/more/word.pt"];
    let missing = [&word[..], &["--offline", "--force"]].concat();
    cache.run(&tweedie, NOBODY, &txt2img(&missing))?.fails(1, &["some/model/more/word.pt", "--offline"])?;
    cache.run(&tweedie, &server.base, &txt2img(&[&word[..], &["--force"]].concat()))?.success()?;

    let refused = |option: &str, parts: &[&str]| -> TestResult {
        cache.run(&tweedie, &server.base, &txt2img(&["--model", &model, "--force", option]))?.fails(1, parts)
    };
    refused("--lora=some/model/more/World.pt", &["more/World.pt", "missing", "more/word.pt", "capitals"])?;
    // A file that is not there is no name.
    refused("--lora=some/file.safetensors", &["some/file.safetensors", "no such file"])
}

#[test]
fn a_repository_with_several_files_asks_which() -> TestResult {
    let lora = std::fs::read(golden().join("models/lora/kohya.safetensors"))?;
    let files = ["ink.safetensors", "storm.safetensors", "old.pt"].map(|name| (name.to_owned(), lora.clone()));
    let (cache, server) = (Cache::new()?, hub_with(Files::from(files), |_| None)?);
    let tweedie = Tweedie::new()?;
    let model = golden().join("models/sd15").to_string_lossy().into_owned();
    let with_lora = |base: &str, lora: &str, more: &[&str]| {
        let options = [&["--force", "--model", &model, "--lora", lora], more].concat();
        cache.run(&tweedie, base, &txt2img(&options))
    };
    let run = |lora: &str| with_lora(&server.base, lora, &[]);
    run("some/model")?
        .fails(2, &["LoRA of some/model", "ink.safetensors, storm.safetensors", "some/model/ink.safetensors"])?;
    run("some/model/storm.safetensors:0.5")?.success()?;
    // That one of them is in the cache now does not make it the one that is meant.
    run("some/model")?.fails(2, &["ink.safetensors, storm.safetensors"])?;
    let as_model = cache.run(&tweedie, &server.base, &txt2img(&["--force", "--model", "some/model"]))?;
    as_model.fails(2, &["checkpoint of some/model", "ink.safetensors, storm.safetensors"])?;
    // Where nobody can say so, it is.
    with_lora(NOBODY, "some/model", &[])?.success()?;
    with_lora(NOBODY, "some/model", &["--offline"])?.success()?;
    let sample = ["sample", "--output=out.png", "--force", "--checkpoint"];
    for (checkpoint, value) in
        [("some/model", "without a model_index.json"), ("some/model/ink.safetensors", "one file")]
    {
        let outcome = cache.run(&tweedie, &server.base, &[&sample[..], &[checkpoint]].concat())?;
        outcome.fails(1, &[checkpoint, value, "pixel space", "owner/name"])?;
    }
    assert!(!server.asked().iter().any(|path| path.contains("ink")), "nothing is fetched that cannot be used");
    let fetch = |more: &[&str]| cache.run(&tweedie, &server.base, &[&["model", "fetch", "--quiet"], more].concat());
    let path = fetch(&["some/model/ink.safetensors", "--part=lora"])?.success()?.stdout;
    assert_eq!(std::fs::read(path.trim())?, lora);
    cache
        .run(&tweedie, NOBODY, &["model", "remove", "some/model/ink.safetensors"])?
        .fails(2, &["one file", "some/model"])
}

#[test]
fn models_in_pixel_space_and_benchmarks_take_names() -> TestResult {
    let (cache, server) = (Cache::new()?, hub_with(files_of(&golden().join("models/pixel28"))?, |_| None)?);
    let tweedie = Tweedie::new()?;
    let sample = |base: &str, checkpoint: &str, more: &[&str]| {
        let common = ["sample", "--quiet", "--steps=2", "--force", "--output=out.png", "--checkpoint", checkpoint];
        cache.run(&tweedie, base, &[&common[..], more].concat())
    };
    sample(&server.base, "some/model", &[])?.success()?;
    let first = pixels(&tweedie.path("out.png"))?;
    let json = sample(NOBODY, "some/model", &["--offline", "--json"])?.success()?.json()?;
    assert_eq!(json["settings"]["model"], "some/model");
    sample(NOBODY, &golden().join("models/pixel28").to_string_lossy(), &[])?.success()?;
    assert!(first == pixels(&tweedie.path("out.png"))?);

    let (cache, server) = (Cache::new()?, hub_with(small_model()?, |_| None)?);
    let bench = ["bench", "--model=some/model", "--size=64", "--runs=1", "--json"];
    let json = cache.run(&tweedie, &server.base, &bench)?.success()?.json()?;
    assert!(json["unet_s"].is_number() && json["model"] == "some/model", "{json}");
    cache.run(&tweedie, NOBODY, &[&bench[..], &["--offline"]].concat())?.success()?;
    cache.run(&tweedie, NOBODY, &["bench", "--model=other/model", "--offline"])?.fails(1, &["other/model", "--offline"])
}

#[test]
fn a_path_that_exists_wins() -> TestResult {
    let tweedie = Tweedie::new()?;
    copy_folder(&golden().join("models/sd15"), &tweedie.path("some/model"))?;
    let cache = Cache::new()?;
    cache.run(&tweedie, NOBODY, &txt2img(&["--model", "some/model"]))?.success()?;
    assert!(!cache.0.path().join("hub").exists());
    Ok(())
}

/// Every short name means its repository, here a server that has a small model under each; what it is, under which licence and how
/// large is said before anything is fetched.
#[test]
fn well_known_models_have_short_names() -> TestResult {
    let files = small_model()?;
    let server = Server::start(move |request| {
        let mut request = request.clone();
        for known in tweedie_pipelines::hub::known_models().values() {
            request.path = request.path.replace(&format!("/{}/", known.repository), "/some/model/");
        }
        hub_answer(&files, &request)
    })?;
    let tweedie = Tweedie::new()?;
    for (name, known) in tweedie_pipelines::hub::known_models() {
        let cache = Cache::new()?;
        let part = if known.what.contains("--vae") { "vae" } else { "model" };
        let fetched = cache.run(&tweedie, &server.base, &["model", "fetch", name, "--part", part])?.success()?;
        assert!(fetched.stdout.contains(&known.repository.replace('/', "--")), "{}", fetched.stdout);
        let told = &fetched.stderr;
        assert!(told.contains(&known.licence) && told.contains(" GB are fetched"), "{name}: {told}");
    }
    let cache = Cache::new()?;
    let drawn = cache.run(&tweedie, &server.base, &txt2img(&["--model", "sd15"]))?.success()?;
    assert_eq!(drawn.stderr, "", "--quiet");
    let again = cache.run(&tweedie, NOBODY, &txt2img(&["--model", "sd15", "--force"]))?.success()?;
    assert_eq!(again.stderr, "");
    cache.run(&tweedie, NOBODY, &["model", "info", "sd15"])?.success()?;
    let slip = cache.run(&tweedie, NOBODY, &txt2img(&["--model", "sd-15", "--force"]))?;
    slip.fails(1, &["did you mean sd15?", "sdxl-turbo", "owner/name"])?;
    let list = cache.run(&tweedie, NOBODY, &["model", "known"])?.success()?.stdout;
    assert!(list.contains("sd15") && list.contains("OpenRAIL") && list.contains("not checked"), "{list}");
    Ok(())
}
