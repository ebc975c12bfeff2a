//! Takes an app through its life: create, wait, watch, resume, read an error's details, delete.
//!
//! Usage: client HOST:PORT APP_ID ENTRYPOINT. Prints one JSON line per step.

use std::{env, error::Error, time::Duration};

use protos::appsupervisor::catalog::v1::{
    App, CreateAppRequest, DeleteAppRequest, GetAppRequest, UpdateAppRequest, WatchAppsRequest, WatchAppsResponse,
    app_catalog_client::AppCatalogClient, delete_app_request::DataPolicy, watch_apps_response::Type,
};
use protos::google::longrunning::{
    Operation, WaitOperationRequest, operation, operations_client::OperationsClient,
};
use prost::Message;
use serde_json::{Value, json};
use tonic::{Response, Status, Streaming, transport::Channel};
use tonic_types::StatusExt;

// What is generated from others' protos is not all used.
#[allow(dead_code, clippy::all, rustdoc::all)]
mod protos {
    include!(concat!(env!("OUT_DIR"), "/protos.rs"));
}

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What a program does with the catalog.
struct Catalog {
    apps: AppCatalogClient<Channel>,
    operations: OperationsClient<Channel>,
}

impl Catalog {
    /// Returns the app that an operation ends with, or what it failed with.
    async fn wait(&mut self, begun: Response<Operation>) -> Result<App> {
        let mut operation = begun.into_inner();
        while !operation.done {
            let timeout = Some(prost_types::Duration { seconds: 10, nanos: 0 });
            let request = WaitOperationRequest { name: operation.name, timeout };
            operation = self.operations.wait_operation(request).await?.into_inner();
        }
        match operation.result {
            Some(operation::Result::Response(packed)) if packed.type_url.ends_with("/appsupervisor.catalog.v1.App") => {
                Ok(App::decode(packed.value.as_slice())?)
            }
            other => Err(format!("{} ended with {other:?}", operation.name).into()),
        }
    }

    /// Streams what happens to one app, from the start or from exactly after a token, until the stream is dropped.
    async fn watch(&mut self, name: &str, resume_token: String) -> Result<Streaming<WatchAppsResponse>> {
        let filter = format!("name = \"{name}\"");
        Ok(self.apps.watch_apps(WatchAppsRequest { filter, resume_token }).await?.into_inner())
    }
}

/// Reports the details of the error that a call is to end with.
fn refused<T>(step: &str, called: std::result::Result<T, Status>) -> Result<()> {
    let Err(status) = called else { return Err(format!("{step}: the call succeeded").into()) };
    let info = status.get_details_error_info().ok_or("an error without ErrorInfo")?;
    let violations = status.get_details_bad_request().map(|bad| bad.field_violations).unwrap_or_default();
    let mut fields: Vec<_> = violations.into_iter().map(|violation| violation.field).collect();
    fields.sort();
    report(json!({"step": step, "reason": info.reason, "domain": info.domain, "fields": fields}));
    Ok(())
}

/// Prints what a step has found.
fn report(found: Value) {
    println!("{found}");
}

async fn run(address: &str, app_id: &str, entrypoint: &str) -> Result<()> {
    let endpoint = Channel::from_shared(format!("http://{address}"))?.timeout(Duration::from_secs(60));
    let channel = endpoint.connect().await?;
    let mut catalog =
        Catalog { apps: AppCatalogClient::new(channel.clone()), operations: OperationsClient::new(channel) };
    let name = format!("apps/{app_id}");

    let labels = [("client".to_owned(), "rust".to_owned())].into();
    let created = catalog.apps.create_app(CreateAppRequest {
        app_id: app_id.to_owned(),
        app: Some(App { entrypoint: entrypoint.to_owned(), labels, ..App::default() }),
        request_id: format!("create-{app_id}"),
        ..Default::default()
    });
    let created = created.await?;
    let app = catalog.wait(created).await?;
    report(json!({"step": "created", "name": app.name, "state": app.state().as_str_name()}));

    let mut stream = catalog.watch(&name, String::new()).await?;
    let synced = loop {
        let message = stream.message().await?.ok_or("the stream ended")?;
        match message.r#type() {
            Type::Upsert => report(json!({"step": "watched", "name": message.app.unwrap_or_default().name})),
            Type::Synced => break message,
            _ => {}
        }
    };
    drop(stream);

    let update = catalog.apps.update_app(UpdateAppRequest {
        app: Some(App { name: name.clone(), display_name: "Changed".to_owned(), ..App::default() }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["display_name".to_owned()] }),
        ..Default::default()
    });
    let update = update.await?;
    catalog.wait(update).await?;
    let mut stream = catalog.watch(&name, synced.resume_token).await?;
    loop {
        let message = stream.message().await?.ok_or("the stream ended")?;
        assert!(message.revision > synced.revision, "what was told before is told again");
        let app = message.app.unwrap_or_default();
        if !app.display_name.is_empty() {
            report(json!({"step": "resumed", "name": app.name, "displayName": app.display_name}));
            break;
        }
    }
    drop(stream);

    let app = Some(App { entrypoint: "nonsense".to_owned(), ..App::default() });
    let bad = CreateAppRequest { app_id: "Not An Id".to_owned(), app, ..Default::default() };
    refused("refused", catalog.apps.create_app(bad).await)?;

    let deleted = catalog.apps.delete_app(DeleteAppRequest {
        name: name.clone(),
        data_policy: DataPolicy::Drop.into(),
        ..Default::default()
    });
    let deleted = deleted.await?;
    let app = catalog.wait(deleted).await?;
    report(json!({"step": "deleted", "name": app.name}));
    refused("gone", catalog.apps.get_app(GetAppRequest { name, ..Default::default() }).await)
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let [address, app_id, entrypoint] = arguments.as_slice() else {
        return Err("usage: client HOST:PORT APP_ID ENTRYPOINT".into());
    };
    run(address, app_id, entrypoint).await
}
