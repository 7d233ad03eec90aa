//! The side of the control socket that answers: it asks whoever knows, and turns what they say into text.

use std::time::Duration;

use hyper::StatusCode;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use super::{DesiredTable, Drains, Endpoints, Query};
use crate::http::Answer;
use crate::mailbox::Mailbox;

/// How long a client may have to wait for whoever knows and is busy.
const PATIENCE: Duration = Duration::from_secs(4);

/// A question that the reconciler answers.
#[derive(Debug)]
pub(crate) enum AskReconciler {
    VirtualServers(oneshot::Sender<DesiredTable>),
    Drains(oneshot::Sender<Drains>),
}

/// A question that the agent's asynchronous side answers, which has the objects.
#[derive(Debug)]
pub(crate) enum AskAgent {
    Endpoints(oneshot::Sender<Endpoints>),
}

/// Takes questions. Cloning shares it.
#[derive(Clone)]
pub(crate) struct Desk {
    pub(crate) reconciler: Mailbox,
    pub(crate) agent: mpsc::Sender<AskAgent>,
}

impl Desk {
    /// What is answered to a request for `path`.
    pub(crate) async fn answer(self, path: String) -> Answer {
        match Query::of(&path) {
            None => {
                let paths = Query::ALL.map(Query::path).join(", ");
                Answer::text(StatusCode::NOT_FOUND, &format!("there is no {path} here; try {paths}"))
            }
            Some(Query::VirtualServers) => in_json(self.ask_reconciler(AskReconciler::VirtualServers).await).await,
            Some(Query::Drains) => in_json(self.ask_reconciler(AskReconciler::Drains).await).await,
            Some(Query::Endpoints) => in_json(self.ask_agent(AskAgent::Endpoints).await).await,
        }
    }

    /// What the reconciler says; `None` when it is too busy to.
    pub(crate) async fn ask_reconciler<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> AskReconciler) -> Option<T> {
        let (ask, answer) = oneshot::channel();
        self.reconciler.post(|letter| letter.asks.push(question(ask)));
        tokio::time::timeout(PATIENCE, answer).await.ok()?.ok()
    }

    /// What the agent's asynchronous side says; `None` when it is too busy to.
    pub(crate) async fn ask_agent<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> AskAgent) -> Option<T> {
        let (ask, answer) = oneshot::channel();
        self.agent.try_send(question(ask)).ok()?;
        tokio::time::timeout(PATIENCE, answer).await.ok()?.ok()
    }
}

async fn in_json<T: Serialize + Send + 'static>(document: Option<T>) -> Answer {
    let Some(document) = document else {
        return Answer::text(StatusCode::SERVICE_UNAVAILABLE, "who knows that is busy or has ended; try again");
    };
    // Of a large node it is megabytes, for which nobody else is to wait.
    match tokio::task::spawn_blocking(move || serde_json::to_vec(&document)).await {
        Ok(Ok(body)) => Answer { status: StatusCode::OK, content_type: "application/json", body, header: None },
        _ => Answer::text(StatusCode::INTERNAL_SERVER_ERROR, "the answer cannot be put into JSON"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn questions_go_to_whoever_knows_and_others_are_told_what_there_is() {
        let (agent, mut asked) = mpsc::channel(1);
        let desk = Desk { reconciler: Mailbox::default(), agent };
        let text = |answer: Answer| (answer.status, String::from_utf8(answer.body).unwrap());

        let (status, body) = text(desk.clone().answer("/names".to_owned()).await);
        assert_eq!(status, StatusCode::NOT_FOUND);
        assert!(body.contains("/v1/virtual-servers") && body.contains("/v1/endpoints"), "{body}");

        let reconciler = desk.reconciler.clone();
        let reads = tokio::task::spawn_blocking(move || reconciler.take(Duration::from_secs(60)).unwrap().asks.pop());
        let answered = tokio::spawn(desk.clone().answer("/v1/drains".to_owned()));
        let Some(AskReconciler::Drains(ask)) = reads.await.unwrap() else { panic!("another question") };
        ask.send(Drains::default()).unwrap();
        assert_eq!(text(answered.await.unwrap()), (StatusCode::OK, r#"{"drains":[]}"#.to_owned()));

        let answered = tokio::spawn(desk.answer("/v1/endpoints".to_owned()));
        let Some(AskAgent::Endpoints(ask)) = asked.recv().await else { panic!("another question") };
        drop(ask);
        assert_eq!(text(answered.await.unwrap()).0, StatusCode::SERVICE_UNAVAILABLE);
    }
}
