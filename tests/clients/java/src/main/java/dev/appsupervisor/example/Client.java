package dev.appsupervisor.example;

import com.google.longrunning.Operation;
import com.google.longrunning.OperationsGrpc;
import com.google.longrunning.OperationsGrpc.OperationsBlockingStub;
import com.google.longrunning.WaitOperationRequest;
import com.google.protobuf.Any;
import com.google.protobuf.Duration;
import com.google.protobuf.FieldMask;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import dev.appsupervisor.catalog.v1.App;
import dev.appsupervisor.catalog.v1.AppCatalogGrpc;
import dev.appsupervisor.catalog.v1.AppCatalogGrpc.AppCatalogBlockingStub;
import dev.appsupervisor.catalog.v1.CreateAppRequest;
import dev.appsupervisor.catalog.v1.DeleteAppRequest;
import dev.appsupervisor.catalog.v1.DeleteAppRequest.DataPolicy;
import dev.appsupervisor.catalog.v1.GetAppRequest;
import dev.appsupervisor.catalog.v1.UpdateAppRequest;
import dev.appsupervisor.catalog.v1.WatchAppsRequest;
import dev.appsupervisor.catalog.v1.WatchAppsResponse;
import io.grpc.Context;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.function.Predicate;
import java.util.stream.Collectors;

/**
 * Takes an app through its life: create, wait, watch, resume, read an error's details, delete.
 *
 * <p>Usage: Client HOST:PORT APP_ID ENTRYPOINT. Prints one JSON line per step.
 */
public final class Client {
  private final AppCatalogBlockingStub apps;
  private final OperationsBlockingStub operations;

  private Client(ManagedChannel channel) {
    apps = AppCatalogGrpc.newBlockingStub(channel).withDeadlineAfter(60, TimeUnit.SECONDS);
    operations = OperationsGrpc.newBlockingStub(channel).withDeadlineAfter(60, TimeUnit.SECONDS);
  }

  public static void main(String[] args) throws Exception {
    if (args.length != 3) {
      System.err.println("usage: Client HOST:PORT APP_ID ENTRYPOINT");
      System.exit(2);
    }
    ManagedChannel channel = Grpc.newChannelBuilder(args[0], InsecureChannelCredentials.create()).build();
    try {
      new Client(channel).run(args[1], args[2]);
    } finally {
      channel.shutdownNow().awaitTermination(5, TimeUnit.SECONDS);
    }
  }

  private void run(String appId, String entrypoint) throws InvalidProtocolBufferException {
    String name = "apps/" + appId;

    App wanted = App.newBuilder().setEntrypoint(entrypoint).putLabels("client", "java").build();
    App app =
        await(
            apps.createApp(
                CreateAppRequest.newBuilder()
                    .setAppId(appId)
                    .setApp(wanted)
                    .setRequestId("create-" + appId)
                    .build()));
    report("created", text("name", app.getName()), text("state", app.getState().name()));

    WatchAppsResponse synced =
        watch(
            name,
            "",
            message -> {
              if (message.getType() == WatchAppsResponse.Type.UPSERT) {
                report("watched", text("name", message.getApp().getName()));
              }
              return message.getType() == WatchAppsResponse.Type.SYNCED;
            });

    await(
        apps.updateApp(
            UpdateAppRequest.newBuilder()
                .setApp(App.newBuilder().setName(name).setDisplayName("Changed"))
                .setUpdateMask(FieldMask.newBuilder().addPaths("display_name"))
                .build()));
    App changed =
        watch(
                name,
                synced.getResumeToken(),
                message ->
                    message.getRevision() > synced.getRevision()
                        && !message.getApp().getDisplayName().isEmpty())
            .getApp();
    report("resumed", text("name", changed.getName()), text("displayName", changed.getDisplayName()));

    CreateAppRequest bad =
        CreateAppRequest.newBuilder()
            .setAppId("Not An Id")
            .setApp(App.newBuilder().setEntrypoint("nonsense"))
            .build();
    refused("refused", () -> apps.createApp(bad));

    DeleteAppRequest delete =
        DeleteAppRequest.newBuilder().setName(name).setDataPolicy(DataPolicy.DROP).build();
    report("deleted", text("name", await(apps.deleteApp(delete)).getName()));
    refused("gone", () -> apps.getApp(GetAppRequest.newBuilder().setName(name).build()));
  }

  /** Returns the app that an operation ends with; throws what it failed with. */
  private App await(Operation begun) throws InvalidProtocolBufferException {
    Operation operation = begun;
    while (!operation.getDone()) {
      operation =
          operations.waitOperation(
              WaitOperationRequest.newBuilder()
                  .setName(operation.getName())
                  .setTimeout(Duration.newBuilder().setSeconds(10))
                  .build());
    }
    if (operation.hasError()) {
      throw StatusProto.toStatusRuntimeException(operation.getError());
    }
    return operation.getResponse().unpack(App.class);
  }

  /** Reads what happens to one app, from the start or from exactly after a token; returns the last that is wanted. */
  private WatchAppsResponse watch(String name, String token, Predicate<WatchAppsResponse> last) {
    WatchAppsRequest request =
        WatchAppsRequest.newBuilder().setFilter("name = \"" + name + "\"").setResumeToken(token).build();
    Context.CancellableContext context = Context.current().withCancellation();
    Context outer = context.attach();
    try {
      var stream = apps.watchApps(request);
      while (true) {
        WatchAppsResponse message = stream.next();
        if (last.test(message)) {
          return message;
        }
      }
    } finally {
      context.detach(outer);
      context.cancel(null);
    }
  }

  /** Reports the details of the error that a call is to end with. */
  private static void refused(String step, Runnable call) throws InvalidProtocolBufferException {
    try {
      call.run();
    } catch (StatusRuntimeException error) {
      ErrorInfo info = ErrorInfo.getDefaultInstance();
      List<String> fields = new ArrayList<>();
      for (Any detail : StatusProto.fromThrowable(error).getDetailsList()) {
        if (detail.is(ErrorInfo.class)) {
          info = detail.unpack(ErrorInfo.class);
        } else if (detail.is(BadRequest.class)) {
          detail.unpack(BadRequest.class).getFieldViolationsList().forEach(v -> fields.add(v.getField()));
        }
      }
      String sorted = fields.stream().sorted().map(f -> "\"" + f + "\"").collect(Collectors.joining(", "));
      report(
          step,
          text("reason", info.getReason()),
          text("domain", info.getDomain()),
          "\"fields\": [" + sorted + "]");
      return;
    }
    throw new AssertionError(step + ": the call succeeded");
  }

  /** Prints what a step has found. The values here need no escaping. */
  private static void report(String step, String... facts) {
    System.out.println("{\"step\": \"" + step + "\", " + String.join(", ", facts) + "}");
  }

  private static String text(String key, String value) {
    return "\"" + key + "\": \"" + value + "\"";
  }
}
