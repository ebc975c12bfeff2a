package dev.appsupervisor.example;

import com.google.gson.Gson;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientInterceptors;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.MethodDescriptor.MethodType;
import io.grpc.Status;
import io.grpc.stub.ClientCalls;
import io.grpc.stub.MetadataUtils;
import io.grpc.stub.StreamObserver;
import java.io.BufferedReader;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.ArrayBlockingQueue;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.function.Supplier;

/**
 * A gRPC client in a process of its own that finds its targets by xds:///: does what lines of JSON say, as
 * tests/integration/gateway/caller.py does.
 */
public final class Caller {
  private static final int TIMEOUT_SECONDS = 60;

  /** Of one call in both directions, each sent when the one before has been answered. */
  private static final int MESSAGES = 5;

  private static final MethodDescriptor<String, String> SAY = method("Say", MethodType.UNARY);
  private static final MethodDescriptor<String, String> TALK = method("Talk", MethodType.BIDI_STREAMING);

  private final Map<String, Channel> channels = new HashMap<>();
  private final List<Thread> going = new ArrayList<>();
  private final Map<String, Integer> answers = new TreeMap<>();
  private final List<String> failed = new ArrayList<>();
  private BlockingQueue<Outcome> burst = new ArrayBlockingQueue<>(1);
  private volatile boolean stopped;

  /** A line that comes. */
  private static final class Command {
    String act;
    String target;
    boolean wait;
    Map<String, String> metadata = Map.of();
    int calls;
  }

  /** How a call has ended; fields that are null are not told. */
  private static final class Outcome {
    String from;
    String code;
    String said;
  }

  public static void main(String[] arguments) throws Exception {
    Caller caller = new Caller();
    Gson json = new Gson();
    BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    for (String line = lines.readLine(); line != null; line = lines.readLine()) {
      // "do" is a word of the language.
      Command command = json.fromJson(line.replaceFirst("\"do\"", "\"act\""), Command.class);
      System.out.println(json.toJson(caller.act(command)));
      System.out.flush();
    }
    System.exit(0);
  }

  private Object act(Command command) throws InterruptedException {
    Channel channel = channels.computeIfAbsent(command.target, Caller::open);
    switch (command.act) {
      case "call":
        return outcome(() -> say(channel, command.metadata, command.wait));
      case "burst":
        burst = new ArrayBlockingQueue<>(command.calls);
        for (int call = 0; call < command.calls; call++) {
          start(() -> burst.add(outcome(() -> say(channel, Map.of(), false))));
        }
        return Map.of();
      case "rest":
        List<Outcome> ended = new ArrayList<>();
        for (int calls = burst.size() + burst.remainingCapacity(); calls > 0; calls--) {
          ended.add(burst.take());
        }
        return Map.of("ended", ended);
      case "begin":
        stopped = false;
        going.clear();
        going.add(start(() -> goOn("say", () -> say(channel, Map.of(), false))));
        going.add(start(() -> goOn("talk", () -> talk(channel))));
        return Map.of();
      case "end":
        stopped = true;
        for (Thread one : going) {
          one.join();
        }
        return Map.of("answers", answers, "failed", failed);
      default:
        throw new IllegalArgumentException(command.act);
    }
  }

  private void goOn(String what, Supplier<String> call) {
    while (!stopped) {
      Outcome told = outcome(call);
      synchronized (failed) {
        if (told.code == null) {
          answers.merge(told.from, 1, Integer::sum);
        } else {
          failed.add(what + " " + told.code + " " + told.said);
        }
      }
    }
  }

  private static String say(Channel channel, Map<String, String> headers, boolean wait) {
    Metadata metadata = new Metadata();
    headers.forEach(
        (name, value) -> metadata.put(Metadata.Key.of(name, Metadata.ASCII_STRING_MARSHALLER), value));
    Channel told =
        ClientInterceptors.intercept(channel, MetadataUtils.newAttachHeadersInterceptor(metadata));
    return ClientCalls.blockingUnaryCall(told, SAY, wait ? options().withWaitForReady() : options(), "who");
  }

  private static String talk(Channel channel) {
    BlockingQueue<Object> heard = new LinkedBlockingQueue<>();
    Object end = new Object();
    StreamObserver<String> out =
        ClientCalls.asyncBidiStreamingCall(
            channel.newCall(TALK, options()),
            new StreamObserver<>() {
              @Override
              public void onNext(String message) {
                heard.add(message);
              }

              @Override
              public void onError(Throwable failure) {
                heard.add(Status.fromThrowable(failure));
              }

              @Override
              public void onCompleted() {
                heard.add(end);
              }
            });
    String who = "";
    for (int number = 0; number < MESSAGES; number++) {
      out.onNext(String.valueOf(number));
      Object answer = next(heard);
      if (!(answer instanceof String)) {
        throw status(answer).asRuntimeException();
      }
      String[] words = ((String) answer).split(" ");
      if (!words[1].equals(String.valueOf(number))) {
        throw Status.INTERNAL.withDescription(words[1] + " for " + number).asRuntimeException();
      }
      who = words[0];
    }
    out.onCompleted();
    Object last = next(heard);
    if (last != end) {
      throw status(last).asRuntimeException();
    }
    return who;
  }

  private static Object next(BlockingQueue<Object> heard) {
    try {
      Object found = heard.poll(2 * TIMEOUT_SECONDS, TimeUnit.SECONDS);
      return found != null ? found : Status.DEADLINE_EXCEEDED;
    } catch (InterruptedException interrupted) {
      throw new IllegalStateException(interrupted);
    }
  }

  private static Status status(Object told) {
    return told instanceof Status ? (Status) told : Status.INTERNAL.withDescription("not expected: " + told);
  }

  private static Outcome outcome(Supplier<String> call) {
    Outcome told = new Outcome();
    try {
      told.from = call.get();
    } catch (RuntimeException failure) {
      Status status = Status.fromThrowable(failure);
      told.code = status.getCode().name();
      told.said = String.valueOf(status.getDescription());
    }
    return told;
  }

  private static Channel open(String target) {
    return Grpc.newChannelBuilder(target, InsecureChannelCredentials.create()).build();
  }

  private static CallOptions options() {
    return CallOptions.DEFAULT.withDeadlineAfter(TIMEOUT_SECONDS, TimeUnit.SECONDS);
  }

  private static Thread start(Runnable work) {
    Thread thread = new Thread(work);
    thread.setDaemon(true);
    thread.start();
    return thread;
  }

  private static MethodDescriptor<String, String> method(String name, MethodType type) {
    Text text = new Text();
    return MethodDescriptor.newBuilder(text, text)
        .setFullMethodName(MethodDescriptor.generateFullMethodName("echo.Echo", name))
        .setType(type)
        .build();
  }

  /** Messages are text as it is. */
  private static final class Text implements MethodDescriptor.Marshaller<String> {
    @Override
    public InputStream stream(String message) {
      return new ByteArrayInputStream(message.getBytes(StandardCharsets.UTF_8));
    }

    @Override
    public String parse(InputStream message) {
      try {
        return new String(message.readAllBytes(), StandardCharsets.UTF_8);
      } catch (IOException broken) {
        throw new UncheckedIOException(broken);
      }
    }
  }
}
