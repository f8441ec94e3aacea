//! Profiles: of the seconds to come, or of the last minutes.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tracing::Instrument;

use crate::generation::{Failure, Kind};
use crate::telemetry::PROCESS;
use crate::telemetry::profile::{Profile, ProfileError, Recent, resolve};

/// What is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// For how long.
    pub time: Duration,
    /// Samples for each second of CPU time.
    pub frequency: u32,
}

/// Samples the time to come, until it is over or `stop`.
///
/// # Errors
/// `Overloaded` while another profile is being taken, `Internal` where there are none.
pub async fn capture(
    recent: Arc<Recent>,
    wanted: Wanted,
    stop: Arc<AtomicBool>,
) -> Result<Profile, Failure> {
    let Wanted { time, frequency } = wanted;
    let span = tracing::info_span!(target: PROCESS, "profile", ?time, frequency);
    let work = tokio::task::spawn_blocking(move || {
        let samples = recent.capture(time, frequency, &stop)?;
        Ok(resolve(&[Arc::new(samples)]))
    });
    let profile = work.instrument(span).await.map_err(Failure::internal)?;
    let profile: Profile = profile.map_err(failure)?;
    let (samples, lost) = (profile.samples(), profile.lost);
    tracing::info!(?time, frequency, samples, lost, "a profile was taken");
    Ok(profile)
}

/// The last minutes.
///
/// # Errors
/// `NotFound` where they are not kept.
pub async fn last_minutes(recent: Arc<Recent>) -> Result<Profile, Failure> {
    let kept = recent.kept().ok_or_else(|| {
        let message = "The last minutes are not kept: profile.enabled is false.";
        Failure::new(Kind::NotFound, message)
    })?;
    let work = tokio::task::spawn_blocking(move || resolve(&kept));
    work.await.map_err(Failure::internal)
}

fn failure(error: ProfileError) -> Failure {
    match error {
        ProfileError::Busy => Failure::new(
            Kind::Overloaded,
            "Another profile is being taken; there can be one at a time.",
        )
        .with_code("profile_busy"),
        error => Failure::internal(error),
    }
}
