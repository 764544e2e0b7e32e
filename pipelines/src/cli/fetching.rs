//! Fetching models, with a bar.

use super::interrupt::Interrupt;

/// How a download is shown and stopped.
#[cfg_attr(not(feature = "hub"), allow(dead_code))]
pub struct Fetching<'a> {
    pub interrupt: &'a Interrupt,
    /// No bar.
    pub quiet: bool,
}

#[cfg(feature = "hub")]
pub use of_hub::hub;

#[cfg(feature = "hub")]
mod of_hub {
    use super::Fetching;
    use crate::cli::print;
    use indicatif::{ProgressBar, ProgressStyle};
    use tweedie_pipelines::hub::{Hub, HubEvent, HubName, HubObserver, KnownModel, Wanted, known_models};
    use tweedie_pipelines::{Model, Result};

    /// The hub as the environment says, and offline also if asked for.
    pub fn hub(offline: bool) -> Result<Hub> {
        let hub = Hub::from_environment()?;
        Ok(Hub { offline: offline || hub.offline, ..hub })
    }

    impl Fetching<'_> {
        /// A model from the cache, or fetched.
        pub fn open(&self, hub: &Hub, name: &HubName, wanted: Wanted) -> Result<Model> {
            self.shown(|observer| hub.open(name, wanted, observer))
        }

        /// Says what is known of a model that is about to be fetched.
        pub fn tell_of(&self, hub: &Hub, name: &HubName, wanted: Wanted) {
            let known = known_models().values().find(|known| known.repository == name.id());
            let Some(known) = known.filter(|_| !self.quiet && !hub.offline && hub.cached(name, wanted).is_none())
            else {
                return;
            };
            let KnownModel { repository, what, licence, full, half, .. } = known;
            let size = if full == half { format!("{full}") } else { format!("{half} to {full}") };
            print::remark(&format!("{repository} is {what}; its licence is {licence}; about {size} GB are fetched"));
        }

        /// A model as the hub has it now.
        pub fn fetch(&self, hub: &Hub, name: &HubName, wanted: Wanted) -> Result<Model> {
            self.shown(|observer| hub.fetch(name, wanted, observer))
        }

        fn shown(&self, fetch: impl FnOnce(&mut HubObserver<'_>) -> Result<Model>) -> Result<Model> {
            let bar = if self.quiet { ProgressBar::hidden() } else { ProgressBar::new(0) };
            let template = "{msg} [{bar:24}] {binary_bytes}/{binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.set_style(style.progress_chars("=> "));
            let (mut shown, mut waiting) = (String::new(), false);
            let fetched = fetch(&mut |event| {
                match event {
                    HubEvent::Progress { name, done, total } => {
                        if shown != name {
                            shown = name.to_owned();
                            bar.reset();
                            bar.set_message(print::escaped(name));
                            bar.set_length(total);
                            // What an earlier try fetched says nothing of speed.
                            bar.set_position(done);
                            bar.reset_eta();
                        }
                        bar.set_position(done);
                        waiting = false;
                    }
                    HubEvent::Saved(name) if !self.quiet => bar.suspend(|| print::remark(&format!("fetched {name}"))),
                    HubEvent::Waiting(seconds) if !waiting && !self.quiet => {
                        waiting = true;
                        bar.suspend(|| print::remark(&format!("waiting for {seconds} s or more, as it is busy")));
                    }
                    _ => {}
                }
                self.interrupt.flow()
            });
            bar.finish_and_clear();
            fetched
        }
    }
}
