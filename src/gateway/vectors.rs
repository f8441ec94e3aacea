//! The same story for what is answered at once: admit, route, compute, count.

use std::time::Duration;

use super::{Gateway, draining};
use crate::generation::{
    Deadlines, EmbedRequest, Failure, Kind, RerankRequest, Scopes, Scores, Usage, Vectors,
};
use crate::limit::Admission;
use crate::telemetry::{RequestRecorder, Route};

impl Gateway {
    /// Computes the vectors of some texts. Dropping the future cancels, and is counted as a caller who
    /// left.
    ///
    /// # Errors
    /// As [`Gateway::generate`]; already counted.
    pub async fn embed(&self, request: EmbedRequest, route: Route) -> Result<Vectors, Failure> {
        let recorder = self.recorder(&request.model, route, &request.id, &request.caller.trace);
        let result = self.vectors(request).await;
        let usage = result.as_ref().map(|vectors| vectors.usage);
        count(&recorder, usage);
        result
    }

    /// Scores documents by how well they answer a query, on the same terms.
    ///
    /// # Errors
    /// As [`Gateway::embed`].
    pub async fn rerank(&self, request: RerankRequest, route: Route) -> Result<Scores, Failure> {
        let recorder = self.recorder(&request.model, route, &request.id, &request.caller.trace);
        let result = self.scores(request).await;
        let usage = result.as_ref().map(|scores| scores.usage);
        count(&recorder, usage);
        result
    }

    async fn vectors(&self, mut request: EmbedRequest) -> Result<Vectors, Failure> {
        let _permit = self.admit(&request.caller, Scopes::EMBED, &request.model)?;
        let engine = self.parts.registry.engine(&request.model)?;
        request.deadlines = request
            .deadlines
            .tightest((&self.patience().deadlines).into());
        let admission = self.limit_embed(&request).await?;
        let work = engine.embed(&request);
        let usage = |vectors: &Vectors| vectors.usage;
        self.whole(&admission, &request.deadlines, work, usage)
            .await
    }

    async fn scores(&self, mut request: RerankRequest) -> Result<Scores, Failure> {
        let _permit = self.admit(&request.caller, Scopes::EMBED, &request.model)?;
        let engine = self.parts.registry.engine(&request.model)?;
        request.deadlines = request
            .deadlines
            .tightest((&self.patience().deadlines).into());
        let admission = self.limit_rerank(&request).await?;
        let work = engine.rerank(&request);
        let usage = |scores: &Scores| scores.usage;
        self.whole(&admission, &request.deadlines, work, usage)
            .await
    }

    /// Bounds the whole of `work`: by its deadline, and by the end of the drain. What was read is
    /// charged. Who leaves before the end, or asked for less time than it takes, has had the engine work
    /// all the same, and pays the estimate; what the engine refuses or fails at costs nothing.
    async fn whole<T>(
        &self,
        admission: &Admission,
        deadlines: &Deadlines,
        work: impl Future<Output = Result<T, Failure>>,
        usage: impl FnOnce(&T) -> Usage,
    ) -> Result<T, Failure> {
        let bound = deadlines.total;
        // As long as any clock can be set; the sum of the two would be no time at all.
        let timeout = tokio::time::sleep(bound.unwrap_or(super::settings::LONGEST));
        admission.begins();
        let result = tokio::select! {
            result = work => result,
            () = self.over.cancelled() => Err(draining()),
            () = timeout => return Err(late(bound)),
        };
        match &result {
            Ok(answer) => admission.began(usage(answer).prompt_tokens),
            Err(_) => admission.came_to_nothing(),
        }
        result
    }
}

fn count(recorder: &RequestRecorder, usage: Result<Usage, &Failure>) {
    match usage {
        Ok(usage) => recorder.answered_with(usage),
        Err(failure) => recorder.refused(failure),
    }
}

fn late(bound: Option<Duration>) -> Failure {
    let bound = humantime::format_duration(bound.unwrap_or_default());
    Failure::new(
        Kind::Deadline,
        format!("The deadline of {bound} for the whole request passed."),
    )
    .with_code("deadline_exceeded")
}
