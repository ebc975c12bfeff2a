// Takes an app through its life: create, wait, watch, resume, read an error's details, delete.
//
// Usage: client.js HOST:PORT APP_ID ENTRYPOINT. Prints one JSON line per step.
import assert from "node:assert";
import { anyUnpack } from "@bufbuild/protobuf/wkt";
import { type Client, ConnectError, createClient, type Transport } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import {
  AppCatalog,
  AppSchema,
  DeleteAppRequest_DataPolicy,
  type App,
  type WatchAppsResponse,
  WatchAppsResponse_Type,
} from "./gen/appsupervisor/catalog/v1/app_catalog_pb.js";
import { Instance_State } from "./gen/appsupervisor/runtime/v1/runtime_environment_pb.js";
import { type Operation, Operations } from "./gen/google/longrunning/operations_pb.js";
import { BadRequestSchema, ErrorInfoSchema } from "./gen/google/rpc/error_details_pb.js";

/** What a program does with the catalog. */
class Catalog {
  readonly apps: Client<typeof AppCatalog>;
  private readonly operations: Client<typeof Operations>;

  constructor(transport: Transport) {
    this.apps = createClient(AppCatalog, transport);
    this.operations = createClient(Operations, transport);
  }

  /** Returns the app that an operation ends with; throws what it failed with. */
  async wait(operation: Operation): Promise<App> {
    while (!operation.done) {
      operation = await this.operations.waitOperation({ name: operation.name, timeout: { seconds: 10n } });
    }
    if (operation.result.case !== "response") {
      throw new Error(`${operation.name} failed: ${operation.result.value?.message}`);
    }
    const app = anyUnpack(operation.result.value, AppSchema);
    assert(app, operation.result.value.typeUrl);
    return app;
  }

  /** Yields what happens to one app, from the start or from exactly after a token. Leaving the loop ends the stream. */
  async *watch(name: string, resumeToken = ""): AsyncGenerator<WatchAppsResponse> {
    const ended = new AbortController();
    try {
      yield* this.apps.watchApps({ filter: `name = "${name}"`, resumeToken }, { signal: ended.signal });
    } finally {
      ended.abort();
    }
  }
}

/** Reports the details of the error that a call is to end with. */
async function refused(step: string, call: Promise<unknown>): Promise<void> {
  const error = await call.then(
    () => assert.fail(`${step}: the call succeeded`),
    (reason: unknown) => ConnectError.from(reason),
  );
  const [info] = error.findDetails(ErrorInfoSchema);
  const bad = error.findDetails(BadRequestSchema);
  assert(info, error.message);
  const fields = bad.flatMap((detail) => detail.fieldViolations.map((violation) => violation.field)).sort();
  report(step, { reason: info.reason, domain: info.domain, fields });
}

/** Prints what a step has found. */
function report(step: string, facts: object): void {
  console.log(JSON.stringify({ step, ...facts }));
}

async function run(address: string, appId: string, entrypoint: string): Promise<void> {
  const transport = createGrpcTransport({ baseUrl: `http://${address}`, defaultTimeoutMs: 60_000 });
  const catalog = new Catalog(transport);
  const name = `apps/${appId}`;

  const wanted = { entrypoint, labels: { client: "typescript" } };
  let app = await catalog.wait(await catalog.apps.createApp({ appId, app: wanted, requestId: `create-${appId}` }));
  report("created", { name: app.name, state: Instance_State[app.state] });

  let synced: WatchAppsResponse | undefined;
  for await (const message of catalog.watch(name)) {
    if (message.type === WatchAppsResponse_Type.UPSERT) {
      report("watched", { name: message.app?.name });
    } else if (message.type === WatchAppsResponse_Type.SYNCED) {
      synced = message;
      break;
    }
  }
  assert(synced);

  const change = { app: { name, displayName: "Changed" }, updateMask: { paths: ["display_name"] } };
  await catalog.wait(await catalog.apps.updateApp(change));
  for await (const message of catalog.watch(name, synced.resumeToken)) {
    assert(message.revision > synced.revision, "what was told before is told again");
    if (message.app?.displayName) {
      report("resumed", { name: message.app.name, displayName: message.app.displayName });
      break;
    }
  }

  await refused("refused", catalog.apps.createApp({ appId: "Not An Id", app: { entrypoint: "nonsense" } }));

  const policy = { name, dataPolicy: DeleteAppRequest_DataPolicy.DROP };
  app = await catalog.wait(await catalog.apps.deleteApp(policy));
  report("deleted", { name: app.name });
  await refused("gone", catalog.apps.getApp({ name }));
}

const [address, appId, entrypoint] = process.argv.slice(2);
if (!address || !appId || !entrypoint) {
  console.error("usage: client.js HOST:PORT APP_ID ENTRYPOINT");
  process.exit(2);
}
await run(address, appId, entrypoint);
process.exit(0); // connections are kept for later calls, and there are none
