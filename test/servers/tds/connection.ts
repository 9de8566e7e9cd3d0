import type { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { TdsError } from './errors.js';
import {
  agree,
  type Login,
  loginAck,
  preloginAnswer,
  readLogin,
  readPrelogin,
  type ServerTls,
  startTls,
} from './login.js';
import { PgLink } from './pg-link.js';
import { settingsFrom } from './recovery.js';
import { CHANGE, DONE, Reply } from './reply.js';
import { readHeaders, readRpc, readTm, runBulk, runRpc, runTm } from './requests.js';
import type { TdsServer } from './server.js';
import { BatchEnd, Cancelled, Session, SessionGone } from './session.js';
import { type Message, MessageCutter, PACKET, ProtocolError, Reader, ReplyStream, STATUS, TDS } from './wire.js';

const FIRST_PACKET_SIZE = 4096;
/** What SQL Server allows at most in encrypted connections. */
const MOST_ENCRYPTED = 16_383;
const MOST = 32_767;
const TLS_RECORD = 0x16;
const STRICT_VERSION = 0x08000000;

/** One client: from its first byte until one side is gone. */
export class Connection {
  readonly #cutter = new MessageCutter();
  readonly #waiting: Message[] = [];
  #out: Duplex;
  #tls: ServerTls | null = null;
  #encrypted: 'nothing' | 'login' | 'all' = 'nothing';
  #strict = false;
  #bytes = 0;
  #preloginDone = false;
  #session: Session | null = null;
  #working = false;
  /** An Attention came that is not answered yet. */
  #attention = false;

  constructor(
    private readonly server: TdsServer,
    private readonly socket: Socket,
    private readonly spid: number,
  ) {
    this.#out = socket;
    socket.setNoDelay(true);
    socket.on('data', (chunk) => this.#input(chunk));
    socket.on('error', () => {});
    socket.on('end', () => this.close());
    socket.on('close', () => this.close());
  }

  get session(): Session | null {
    return this.#session;
  }

  /** Ends the connection without a word. */
  close(): void {
    if (!this.server.forget(this.spid)) return;
    const session = this.#session;
    if (session !== null) {
      this.server.note('logout', { spid: this.spid, trancount: session.trancount });
      void session.leave();
    }
    this.#tls?.stream.destroy();
    this.socket.destroy();
  }

  /** Ends the connection when all that was said has left. */
  async dismiss(): Promise<void> {
    if (!this.#out.destroyed) await new Promise<void>((done) => this.#out.end(done));
    this.close();
  }

  #input(chunk: Buffer): void {
    const first = this.#bytes === 0;
    this.#bytes += chunk.length;
    if (first && chunk[0] === TLS_RECORD) {
      this.#strict = true;
      this.#encrypted = 'all';
      this.#startTls();
    }
    if (this.#tls !== null) this.#tls.feed(chunk);
    else this.#take(chunk);
  }

  #startTls(): void {
    this.#tls = startTls(this.socket, this.server.tls, this.#strict);
    const { stream } = this.#tls;
    this.#out = stream;
    stream.on('data', (chunk) => this.#take(chunk));
    stream.on('error', (error) => {
      this.server.note('tls-error', { spid: this.spid, text: error.message });
      this.close();
    });
    stream.on('secure', () =>
      this.server.note('tls', { spid: this.spid, version: stream.getProtocol(), alpn: stream.alpnProtocol }),
    );
    stream.on('close', () => this.close());
  }

  #take(chunk: Buffer): void {
    try {
      for (const message of this.#cutter.push(chunk)) this.#message(message);
    } catch (error) {
      this.#broken(error);
    }
  }

  #broken(error: unknown): void {
    if (!(error instanceof SessionGone)) {
      this.server.note(error instanceof ProtocolError ? 'protocol-error' : 'failure', {
        spid: this.spid,
        text: (error as Error).stack ?? String(error),
      });
    }
    this.close();
  }

  #message(message: Message): void {
    if (message.type === PACKET.attention && this.#session !== null) {
      this.server.count('attention');
      this.server.note('attention', { spid: this.spid, running: this.#session.running });
      this.#attention = true;
      if (this.#working) this.#session.cancel();
      else this.#answerAttention();
      return;
    }
    if (message.type === PACKET.prelogin && !this.#preloginDone) {
      this.#prelogin(message.payload);
      return;
    }
    this.#waiting.push(message);
    void this.#work();
  }

  #answerAttention(): void {
    this.#attention = false;
    const reply = this.#reply();
    reply.done('', null, DONE.attention);
    reply.end();
  }

  #reply(): Reply {
    const { packetSize = FIRST_PACKET_SIZE, version = TDS.v74 } = this.#session ?? {};
    return new Reply(new ReplyStream(this.#out, packetSize, this.spid), version, this.server.name);
  }

  #prelogin(payload: Buffer): void {
    this.#preloginDone = true;
    const options = readPrelogin(payload);
    if (!options.has(0)) throw new ProtocolError('PRELOGIN without a version');
    const asked = options.get(1)?.[0] ?? 2;
    const { answer, encrypted } = this.#strict
      ? { answer: 1, encrypted: 'all' as const }
      : agree(asked, this.server.encryption);
    this.server.note('prelogin', { spid: this.spid, encryption: asked, answer });
    const stream = new ReplyStream(this.#out, FIRST_PACKET_SIZE, 0);
    stream.write(preloginAnswer(answer));
    stream.end();
    if (encrypted === null) {
      this.socket.end();
      return;
    }
    if (this.#strict) return;
    this.#encrypted = encrypted;
    const rest = this.#cutter.takeRest();
    if (encrypted === 'nothing') {
      if (rest.length > 0) this.#take(rest);
      return;
    }
    this.#startTls();
    if (rest.length > 0) this.#tls!.feed(rest);
  }

  async #work(): Promise<void> {
    if (this.#working) return;
    this.#working = true;
    try {
      for (let message = this.#waiting.shift(); message !== undefined; message = this.#waiting.shift()) {
        if (this.#session === null) await this.#login(message);
        else await this.#request(this.#session, message);
        if (this.#attention) this.#answerAttention();
      }
    } catch (error) {
      this.#broken(error);
    } finally {
      this.#working = false;
    }
  }

  // ---------------------------------------------------------------------------------------------- login

  async #login({ type, payload }: Message): Promise<void> {
    if (type !== PACKET.login) throw new ProtocolError(`a message of type ${type} before a login`);
    const login = readLogin(payload);
    if (this.#encrypted === 'login') {
      // From here on everything is plain, in both directions.
      const { stream } = this.#tls!;
      stream.removeAllListeners();
      stream.on('error', () => {});
      this.#tls = null;
      this.#out = this.socket;
    }
    const strict = login.version === STRICT_VERSION;
    const version = strict ? TDS.v74 : Math.min(login.version, this.server.mostVersion);
    if (!strict && login.version < 0x71000000) throw new ProtocolError(`TDS version ${login.version.toString(16)}`);
    const most = this.#encrypted === 'all' ? MOST_ENCRYPTED : MOST;
    const packetSize = Math.min(Math.max(login.packetSize === 0 ? FIRST_PACKET_SIZE : login.packetSize, 512), most);
    const reply = new Reply(new ReplyStream(this.#out, FIRST_PACKET_SIZE, this.spid), version, this.server.name);
    const refuse = (...errors: TdsError[]) => {
      for (const error of errors) reply.error(error);
      reply.done('', null, DONE.error);
      reply.end();
      this.server.note('login-failed', { spid: this.spid, user: login.user, number: errors[0].number });
      this.#out.end();
    };
    const failed = new TdsError(18456, `Login failed for user '${login.user}'.`);
    if (!this.server.admits(login.user, login.password)) {
      refuse(failed);
      return;
    }
    let link: PgLink;
    try {
      link = await PgLink.open(this.server.place, `tds ${this.spid}`);
    } catch (error) {
      const { code } = error as { code?: string };
      if (code !== '57P03') throw error;
      refuse(
        new TdsError(
          17187,
          'SQL Server is not ready to accept new client connections. Wait a few minutes before trying again.',
        ),
      );
      return;
    }
    await this.server.prepare(link);
    const session = new Session(this.server, link, this.spid, login, version, packetSize, this.#encrypted === 'all');
    const recovered = this.server.recovered(login);
    if (recovered !== null) session.recover(recovered.database, settingsFrom(recovered.state));
    if (!(await this.server.hasDatabase(link, session.database))) {
      link.destroy();
      refuse(
        new TdsError(4060, `Cannot open database "${login.database}" requested by the login. The login failed.`),
        failed,
      );
      return;
    }
    await session.begin();
    if (this.socket.destroyed) {
      link.destroy();
      return;
    }
    link.onLost(() => this.close());
    this.#session = session;
    this.#greet(reply, session, login, strict);
    if (version >= TDS.v73a) this.#cutter.exactSize = packetSize;
    this.server.note('login', {
      spid: this.spid,
      user: login.user,
      version: version.toString(16),
      packetSize,
      encrypted: this.#encrypted,
    });
  }

  #greet(reply: Reply, session: Session, login: Login, strict: boolean): void {
    reply.change(CHANGE.database, session.database, 'master');
    reply.info(5701, `Changed database context to '${session.database}'.`, { state: 2 });
    reply.collation();
    reply.change(CHANGE.language, 'us_english', '');
    reply.info(5703, 'Changed language setting to us_english.');
    reply.raw(loginAck(strict ? STRICT_VERSION : login.version === 0x71000000 ? 0x07010000 : session.version));
    reply.change(CHANGE.packetSize, String(session.packetSize), String(FIRST_PACKET_SIZE));
    const features = this.server.featuresFor(session, login);
    if (features !== null) reply.raw(features);
    reply.done('');
    reply.end();
  }

  // ---------------------------------------------------------------------------------------------- requests

  async #request(session: Session, message: Message): Promise<void> {
    const reply = this.#reply();
    session.reply = reply;
    await session.ready();
    session.lastRequest = new Date();
    if ((message.status & STATUS.ignore) !== 0) {
      reply.end();
      return;
    }
    const reader = new Reader(message.payload);
    try {
      await this.#dispatch(session, message, reader);
    } catch (error) {
      if (error instanceof Cancelled) {
        await session.afterCancel();
        reply.endCancelled();
        return;
      }
      if (!(error instanceof BatchEnd)) throw error;
    } finally {
      session.running = null;
    }
    const state = this.server.sessionState(session);
    if (state !== null) reply.state(state);
    reply.end();
    await reply.stream.drained();
  }

  async #dispatch(session: Session, { type, status }: Message, reader: Reader): Promise<void> {
    const { version, reply } = session;
    const kind = ({ 1: 'batch', 3: 'rpc', 7: 'bulk', 14: 'transaction' } as Record<number, string>)[type];
    if (kind === undefined) throw new ProtocolError(`a message of type ${type} in a session`);
    this.server.count(kind);
    session.running = kind.toUpperCase();
    if (type === PACKET.bulk) {
      this.server.note('request', { spid: this.spid, of: kind });
      await runBulk(session, reader, version);
      return;
    }
    const descriptor = readHeaders(reader, version);
    const reset = (status & (STATUS.reset | STATUS.resetKeepTransaction)) !== 0;
    if (reset) await session.reset((status & STATUS.resetKeepTransaction) !== 0);
    else if (descriptor !== null) {
      const wrong = this.#wrongDescriptor(session, descriptor);
      if (wrong !== null) {
        if (wrong.number === 3971) {
          reply.info(3926, 'The transaction active in this session has been committed or aborted by another session.', {
            state: 2,
          });
        }
        reply.error(wrong);
        reply.done('', null, DONE.error);
        return;
      }
    }
    if (type === PACKET.batch) {
      const text = reader.take(reader.left).toString('utf16le');
      this.server.note('request', { spid: this.spid, of: kind, text });
      await session.batch(text);
    } else if (type === PACKET.rpc) {
      const calls = readRpc(reader, version);
      for (const { procedure, given } of calls) {
        this.server.note('request', {
          spid: this.spid,
          of: kind,
          text: procedure,
          first: given[0]?.value?.slice(0, 500) ?? null,
        });
      }
      await runRpc(session, calls);
    } else {
      const request = readTm(reader);
      this.server.note('request', { spid: this.spid, of: kind, text: String(request.kind), name: request.name });
      await runTm(session, request);
    }
  }

  /** What is wrong with the descriptor of a request. Only a server that tells of all its transactions can know. */
  #wrongDescriptor(session: Session, descriptor: bigint): TdsError | null {
    if (!this.server.announcesText || descriptor === session.descriptor) return null;
    if (descriptor === 0n) {
      return new TdsError(
        3989,
        'New request is not allowed to start because it should come with valid transaction descriptor.',
      );
    }
    return new TdsError(3971, `The server failed to resume the transaction. Desc:${descriptor.toString(16)}.`);
  }
}
