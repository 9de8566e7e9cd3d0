import { hkdfSync } from 'node:crypto';
import { once } from 'node:events';
import * as net from 'node:net';
import * as tls from 'node:tls';
import { decodeJson, FRAME, FrameDecoder, FrameEncoder, type Hello } from '../../core/cluster/link/index.js';
import type { CodedError, Log } from '../../core/contract/index.js';
import { PairLink, type PairLinkOptions } from '../../core/io/pair-link.js';

/** PEM texts, made for tests only: two CAs, the certificates of `a`, `b` and `c` of the first, and a `b` of the second. */
export const PEM = {
  ca: `-----BEGIN CERTIFICATE-----
MIIBcDCCARegAwIBAgIUMutQoUAGZJ/4Hgq8s070CZKA7ZQwCgYIKoZIzj0EAwIw
DTELMAkGA1UEAwwCY2EwIBcNMjYxMTIzMDczNTE1WhgPMjEyNjEwMzAwNzM1MTVa
MA0xCzAJBgNVBAMMAmNhMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAESCeBy2DU
DOZe9gUlQ+e7qpwFP/GCtRQGGhaqkQ3GLfuUJSnB2dJ0D1cVsG27z2yz+w3LYjSe
zmR0hWPDHIZ6/qNTMFEwHQYDVR0OBBYEFJi8hABpYfsGfKRTJOy+tLp9x2j0MB8G
A1UdIwQYMBaAFJi8hABpYfsGfKRTJOy+tLp9x2j0MA8GA1UdEwEB/wQFMAMBAf8w
CgYIKoZIzj0EAwIDRwAwRAIgakE8x4tSAbCY+GLHqpLWTAXXCrmelBvGmoCy9Aj4
afwCIFTwqKCuPFdxVITAsE1a1EbHIUI84m2/eeX6P6JgEF/9
-----END CERTIFICATE-----
`,
  otherCa: `-----BEGIN CERTIFICATE-----
MIIBfTCCASOgAwIBAgIUDqklkPPk3isRHI5v4ZQ/SAup/60wCgYIKoZIzj0EAwIw
EzERMA8GA1UEAwwIb3RoZXItY2EwIBcNMjYxMTIzMDczNTE1WhgPMjEyNjEwMzAw
NzM1MTVaMBMxETAPBgNVBAMMCG90aGVyLWNhMFkwEwYHKoZIzj0CAQYIKoZIzj0D
AQcDQgAET1gkyq+cEkZeO8KnWhDJzi9UOn2K9uWHO9kOGYGTXKVPlbGSKetbCRMp
dUXSbkysnIGehj3iaLEaRMzzthIPJ6NTMFEwHQYDVR0OBBYEFJpqGmdcaXyVwu8A
5+ntUAgzS5M5MB8GA1UdIwQYMBaAFJpqGmdcaXyVwu8A5+ntUAgzS5M5MA8GA1Ud
EwEB/wQFMAMBAf8wCgYIKoZIzj0EAwIDSAAwRQIhAIIg5A03L67DwLvmTh0vYjFt
LaDfhXAdoocYYfisGjnFAiB7U85VMN+YA6v95/Xxbz2Pvpagueiuiz+80UJsigMo
Mg==
-----END CERTIFICATE-----
`,
  a: {
    cert: `-----BEGIN CERTIFICATE-----
MIIBbDCCAROgAwIBAgIUJgcz4zFJXPiG20i+61yKvzWIdEQwCgYIKoZIzj0EAwIw
DTELMAkGA1UEAwwCY2EwIBcNMjYxMTIzMDczNTE1WhgPMjEyNjEwMzAwNzM1MTVa
MAwxCjAIBgNVBAMMAWEwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAATL+PZ2BzwW
Xrm8wt2vrVgy3WkVMc3gESP0Fr7rNVN5Y8eDHX2nKmzgbvXiKi1bTKcfYO1guFFq
Q8w85uwdIIoio1AwTjAMBgNVHREEBTADggFhMB0GA1UdDgQWBBSoiMnrSaKoN4mJ
LDWGGba845GElTAfBgNVHSMEGDAWgBSYvIQAaWH7BnykUyTsvrS6fcdo9DAKBggq
hkjOPQQDAgNHADBEAiBvCAc9q+H+S7qvXjj3bDfS95dNyMSZcQIz0M64FQsluwIg
N3ufzttQldnZaqVY2+DkxMydVmak7u6y4VxqH5CxHRA=
-----END CERTIFICATE-----
`,
    key: `-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgi1+B05IFpp7pRzuL
1qO2gB91J96p5fCISDhIkZt17QOhRANCAATL+PZ2BzwWXrm8wt2vrVgy3WkVMc3g
ESP0Fr7rNVN5Y8eDHX2nKmzgbvXiKi1bTKcfYO1guFFqQ8w85uwdIIoi
-----END PRIVATE KEY-----
`,
  },
  b: {
    cert: `-----BEGIN CERTIFICATE-----
MIIBbTCCAROgAwIBAgIUJgcz4zFJXPiG20i+61yKvzWIdEUwCgYIKoZIzj0EAwIw
DTELMAkGA1UEAwwCY2EwIBcNMjYxMTIzMDczNTE1WhgPMjEyNjEwMzAwNzM1MTVa
MAwxCjAIBgNVBAMMAWIwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAATLu7PMVQoN
1EaBltRZVsSxhCeJWEfKKKUp4qNt4g9kKFBzddtYbtnya9A+7Fm8vgoYj3Hvf1Nn
FSh3hyeIvnYSo1AwTjAMBgNVHREEBTADggFiMB0GA1UdDgQWBBQ0RqhAAV5dOrvt
x3Lep+o/kGKaVzAfBgNVHSMEGDAWgBSYvIQAaWH7BnykUyTsvrS6fcdo9DAKBggq
hkjOPQQDAgNIADBFAiEAqw73G0nh71Fmc7N4DSu7aYGG8+TXjZ4CjVpoGHGBKo0C
IGM9PvKbt82lmQIbQ/PsywdZEhgpY/A+nzl7LdBOklHJ
-----END CERTIFICATE-----
`,
    key: `-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgyvJ2MORNqLVPqefD
D1IiuzPF6rIqplmMEKZMDGYf1cOhRANCAATLu7PMVQoN1EaBltRZVsSxhCeJWEfK
KKUp4qNt4g9kKFBzddtYbtnya9A+7Fm8vgoYj3Hvf1NnFSh3hyeIvnYS
-----END PRIVATE KEY-----
`,
  },
  c: {
    cert: `-----BEGIN CERTIFICATE-----
MIIBbDCCAROgAwIBAgIUJgcz4zFJXPiG20i+61yKvzWIdEYwCgYIKoZIzj0EAwIw
DTELMAkGA1UEAwwCY2EwIBcNMjYxMTIzMDczNTE1WhgPMjEyNjEwMzAwNzM1MTVa
MAwxCjAIBgNVBAMMAWMwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAQgNIiHTr4H
hMiJKUbw6L/YzZnSI+TMtIyoCUTz0PNRUZnrJCpoE50VGIgskt02b3PkInug2euN
U0HyoyPIMKxbo1AwTjAMBgNVHREEBTADggFjMB0GA1UdDgQWBBTrfVKFb1XQLR73
6EMlBiId2rsOIDAfBgNVHSMEGDAWgBSYvIQAaWH7BnykUyTsvrS6fcdo9DAKBggq
hkjOPQQDAgNHADBEAiAGcVSO6YPIAkn5wJQX8P+tSPv8hieqAbsfkJoUaz9AlQIg
Hj6xt8m0pz58CEorv+XGiHVLFJIR8VERAbgM2fH+oTA=
-----END CERTIFICATE-----
`,
    key: `-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgkFNOiMmqLsu3cMlQ
cgpYPpZbgnMF9NW85iC7vBTqS0ChRANCAAQgNIiHTr4HhMiJKUbw6L/YzZnSI+TM
tIyoCUTz0PNRUZnrJCpoE50VGIgskt02b3PkInug2euNU0HyoyPIMKxb
-----END PRIVATE KEY-----
`,
  },
  bOther: {
    cert: `-----BEGIN CERTIFICATE-----
MIIBczCCARmgAwIBAgIUEMhhuukE214NQHmIkU/4OrH+3rcwCgYIKoZIzj0EAwIw
EzERMA8GA1UEAwwIb3RoZXItY2EwIBcNMjYxMTIzMDczNTE1WhgPMjEyNjEwMzAw
NzM1MTVaMAwxCjAIBgNVBAMMAWIwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAT1
VrShS2cPGz4l5JXI1NlrjFWtP+UVMCHWb+yat6nvM6gVsnLS5yudrfgZdCTQ9q3l
vMmnZrenNS2FYximcO90o1AwTjAMBgNVHREEBTADggFiMB0GA1UdDgQWBBSsxiT5
y3lX86AlWc1gwAzBFHAlxDAfBgNVHSMEGDAWgBSaahpnXGl8lcLvAOfp7VAIM0uT
OTAKBggqhkjOPQQDAgNIADBFAiA0rLHsGNHBwLI+67xUsVvTCEsNiimwtoVdu/wM
QLZ3XAIhAPSngxUWG6/zTyyoISMJd194oKKpyg+oRI1kzAMGu/Kx
-----END CERTIFICATE-----
`,
    key: `-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgg1+2TIz4NVjU68bl
3gAa1xz93fnnBpxuyz4nEHDKPuehRANCAAT1VrShS2cPGz4l5JXI1NlrjFWtP+UV
MCHWb+yat6nvM6gVsnLS5yudrfgZdCTQ9q3lvMmnZrenNS2FYximcO90
-----END PRIVATE KEY-----
`,
  },
} as const;

export const SECRET = 'a secret for tests, of some length';

/** Becomes true within `ms`, or the test fails with `what`. */
export async function until(condition: () => boolean, what: string, ms = 5000): Promise<void> {
  const end = performance.now() + ms;
  while (!condition()) {
    if (performance.now() > end) throw new Error(`not within ${ms} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** A port on which nobody listens. */
export async function closedPort(): Promise<number> {
  const server = net.createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as net.AddressInfo;
  server.close();
  return port;
}

export type LinkChange = Partial<Omit<PairLinkOptions, 'log'>>;

/** One end of a pair link, and all that it was told. */
export class End {
  readonly ups: Hello[] = [];
  readonly downs: CodedError[] = [];
  readonly records: { kind: number; session: number; bytes: Buffer }[] = [];
  readonly acks: number[] = [];
  readonly beats: unknown[] = [];
  readonly pressures: boolean[] = [];
  readonly lines: { level: string; code?: string; message: string; error?: CodedError }[] = [];
  epoch = 1;
  readonly link: PairLink;

  constructor(name: string, change: LinkChange) {
    const line =
      (level: string) =>
      (fields: Record<string, unknown>, message: string): void => {
        this.lines.push({ level, message, ...(fields as { code?: string; error?: CodedError }) });
      };
    const log: Log = { debug: line('debug'), info: line('info'), warn: line('warn'), error: line('error') };
    this.link = new PairLink({
      name,
      cluster: 'pair',
      peer: null,
      listen: { host: '127.0.0.1', port: 0 },
      auth: { kind: 'psk', secret: SECRET },
      epoch: () => this.epoch,
      onUp: (hello) => this.ups.push(hello),
      onDown: (reason) => this.downs.push(reason),
      onRecord: (kind, session, bytes) => this.records.push({ kind, session, bytes: Buffer.from(bytes) }),
      onAck: (position) => this.acks.push(position),
      onBeat: (statistics) => this.beats.push(statistics),
      onControl: (request, reply) => reply({ echo: request }),
      onPressure: (high) => this.pressures.push(high),
      log,
      ...change,
    });
  }

  /** Codes that were logged as warnings or errors. */
  get codes(): (string | undefined)[] {
    return this.lines.filter(({ level }) => level === 'warn' || level === 'error').map(({ code }) => code);
  }
}

/** Carries TCP connections to a port that is set later, and can hold them up or end them. */
export class Relay {
  target = 0;
  held = false;
  connections = 0;
  readonly #server = net.createServer({ allowHalfOpen: true }, (socket) => this.#carry(socket));
  readonly #sockets = new Set<net.Socket>();

  async start(): Promise<number> {
    this.#server.listen(0, '127.0.0.1');
    await once(this.#server, 'listening');
    return (this.#server.address() as net.AddressInfo).port;
  }

  /** From now on nothing gets through, and nobody is told. */
  hold(): void {
    this.held = true;
    for (const socket of this.#sockets) socket.pause();
  }

  /** New connections get through again; those that were held up stay so. */
  release(): void {
    this.held = false;
  }

  /** Ends all connections. */
  cut(): void {
    for (const socket of this.#sockets) socket.resetAndDestroy();
  }

  close(): void {
    this.cut();
    this.#server.close();
  }

  #carry(near: net.Socket): void {
    this.connections++;
    const far = net.connect({ port: this.target, host: '127.0.0.1', allowHalfOpen: true });
    for (const [from, to] of [
      [near, far],
      [far, near],
    ]) {
      from.setNoDelay(true);
      this.#sockets.add(from);
      from.on('data', (chunk) => {
        if (!this.held) to.write(chunk);
      });
      from.on('end', () => {
        if (!this.held) to.end();
      });
      from.on('error', () => {});
      from.on('close', () => {
        this.#sockets.delete(from);
        if (!this.held) to.destroy();
      });
      if (this.held) from.pause();
    }
  }
}

/** Somebody who has the key, speaks the language and says what he likes. */
export class Forger {
  readonly encoder = new FrameEncoder();
  readonly frames: { type: number; body: Record<string, unknown> }[] = [];
  closed = false;
  #decoder = new FrameDecoder((type, body) => {
    const json = type === FRAME.batch || type === FRAME.ack;
    this.frames.push({ type, body: json ? {} : decodeJson(Buffer.from(body)) });
  });

  private constructor(readonly socket: tls.TLSSocket) {
    socket.on('data', (chunk) => this.#decoder.push(chunk));
    socket.on('error', () => {});
    socket.on('close', () => {
      this.closed = true;
    });
  }

  /** Connects to the gateway `a` as `name`, with the key of a pair link. */
  static async connect(port: number, name = 'b', secret = SECRET): Promise<Forger> {
    const info = ['outlive-pair key 1', 'pair', ...['a', name].sort()].join('\0');
    const psk = Buffer.from(hkdfSync('sha256', secret, 'outlive', info, 32));
    const socket = tls.connect({
      host: '127.0.0.1',
      port,
      ciphers: 'TLS_AES_128_GCM_SHA256',
      minVersion: 'TLSv1.3',
      pskCallback: () => ({ psk, identity: name }),
      checkServerIdentity: () => undefined,
    });
    await once(socket, 'secureConnect');
    return new Forger(socket);
  }

  /** The first frame of a type that came. */
  async got(type: number): Promise<Record<string, unknown>> {
    await until(() => this.frames.some((frame) => frame.type === type), `a frame of type ${type}`);
    return this.frames.find((frame) => frame.type === type)!.body;
  }

  send(bytes?: Uint8Array): void {
    for (const part of bytes === undefined ? this.encoder.take() : [bytes]) this.socket.write(part);
  }

  /** Says hello as `b`, but for what is changed. */
  async hello(change: Record<string, unknown> = {}): Promise<void> {
    const { nonce } = await this.got(FRAME.hello);
    const hello = {
      magic: 'outlive-pair',
      version: { major: 1, minor: 0 },
      name: 'b',
      peer: 'a',
      cluster: 'pair',
      epoch: 1,
      seenEpoch: 0,
      incarnation: `forged-${Math.random()}`,
      nonce: 'forged',
    };
    this.encoder.json(FRAME.hello, { ...hello, ...change });
    this.encoder.json(FRAME.helloAck, { nonce });
    this.send();
  }

  /** Becomes the link. */
  async link(change: Record<string, unknown> = {}): Promise<void> {
    await this.hello(change);
    await this.got(FRAME.helloAck);
  }

  /** Sends a sign of life. */
  beat(epoch = 1): void {
    this.encoder.json(FRAME.beat, { epoch, statistics: null });
    this.send();
  }
}
