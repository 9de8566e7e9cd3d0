import { CodedError } from '../../contract/index.js';

/**
 * What an engine and its keeper say to each other, as bytes: pure. A frame is a length (u32, little endian, of what follows), a
 * type (u8) and the fields of that type: strings and bytes with a length in front (u8, u8, u32 in the order key, label, bytes), numbers as u32.
 * Descriptors go another way; `keep` and `kept` tell that the next one of that way belongs to their key.
 */

export const VERSION = 1;
const MAGIC = 0x504b4c4f;

/** Most bytes of a key and of a label in UTF-8. */
export const MAX_NAME = 255;
/** Most bytes of one note. */
export const MAX_NOTE = 16 * 1024 * 1024;
export const TOKEN_LENGTH = 16;
const MAX_FRAME = MAX_NOTE + 1024;

/** A memory is what an engine reads into, so that nothing is lost between that and its note. */
export type Kind = 'listener' | 'client' | 'memory';
const KINDS: readonly Kind[] = ['listener', 'client', 'memory'];

/** Connections of an engine (one for messages, one for descriptors, with the same token), and of an operator. */
export type Channel = 'control' | 'descriptors' | 'operator';
const CHANNELS: readonly Channel[] = ['control', 'descriptors', 'operator'];

/** What a refusal is about. */
export type Asked = 'keep' | 'note' | 'claim' | 'upgrade';
const ASKED: readonly Asked[] = ['keep', 'note', 'claim', 'upgrade'];

export type Message =
  /** The first on every connection, both ways; on a connection for descriptors one way only. */
  | { readonly type: 'hello'; readonly channel: Channel; readonly token: Uint8Array }
  /** The keeper has both connections of an engine. */
  | { readonly type: 'welcome' }
  /** Keep the next descriptor under this key. A descriptor that the key has already is let go. */
  | { readonly type: 'keep'; readonly key: string; readonly kind: Kind; readonly label: string }
  /** Let go of the descriptor and the notes of this key. */
  | { readonly type: 'drop'; readonly key: string }
  /** Keep these bytes behind those that the key has, or instead of them. */
  | { readonly type: 'note'; readonly key: string; readonly replace: boolean; readonly bytes: Uint8Array }
  /** From the engine: I am the one now; give me everything. */
  | { readonly type: 'claim' }
  /**
   * Answer to a claim, one for each key, its notes behind it. `complete` is false when the keeper had to throw notes of this key
   * away, or could not take them.
   */
  | {
      readonly type: 'kept';
      readonly key: string;
      readonly kind: Kind;
      readonly label: string;
      readonly complete: boolean;
    }
  /** The end of the answer to a claim: so many keys. */
  | { readonly type: 'claimed'; readonly count: number }
  /** So many descriptors were taken from the way of the descriptors. */
  | { readonly type: 'taken'; readonly count: number }
  /** From the keeper: another engine is here; stop reading and writing, note what it must know. */
  | { readonly type: 'retire' }
  /** From the engine: done, and nothing will be touched any more. */
  | { readonly type: 'retired' }
  | { readonly type: 'ping'; readonly number: number }
  | { readonly type: 'pong'; readonly number: number }
  /** From the operator: replace the engine by a new one. */
  | { readonly type: 'upgrade' }
  | { readonly type: 'upgraded' }
  | { readonly type: 'refused'; readonly asked: Asked; readonly key: string; readonly reason: string };

const TYPES = [
  'hello',
  'welcome',
  'keep',
  'drop',
  'note',
  'claim',
  'kept',
  'claimed',
  'taken',
  'retire',
  'retired',
  'ping',
  'pong',
  'upgrade',
  'upgraded',
  'refused',
] as const satisfies readonly Message['type'][];

/** The error of a peer that does not speak this protocol. */
export function violation(what: string): CodedError {
  return new CodedError('OUTLIVE_KEEPER_PROTOCOL', 'system', `the keeper's protocol was broken: ${what}`);
}

/**
 * The frame of a message. The bytes of a note are copied.
 * @throws RangeError when a key, a label or a note is too long: a defect of the caller
 */
export function encode(message: Message): Uint8Array {
  const out = new Writer(TYPES.indexOf(message.type) + 1, roomFor(message));
  switch (message.type) {
    case 'hello':
      out.number(MAGIC).number(VERSION).byte(CHANNELS.indexOf(message.channel)).raw(message.token, TOKEN_LENGTH);
      break;
    case 'keep':
      out.name(message.key).byte(KINDS.indexOf(message.kind)).name(message.label);
      break;
    case 'drop':
      out.name(message.key);
      break;
    case 'note':
      out
        .name(message.key)
        .byte(message.replace ? 1 : 0)
        .bytes(message.bytes);
      break;
    case 'kept':
      out
        .name(message.key)
        .byte(KINDS.indexOf(message.kind))
        .name(message.label)
        .byte(message.complete ? 1 : 0);
      break;
    case 'claimed':
    case 'taken':
      out.number(message.count);
      break;
    case 'ping':
    case 'pong':
      out.number(message.number);
      break;
    case 'refused':
      // A reason may be the text of any error.
      out.byte(ASKED.indexOf(message.asked)).name(message.key).name(shortened(message.reason));
      break;
  }
  return out.frame();
}

function shortened(text: string): string {
  return text.length > 80 ? `${text.slice(0, 77)}...` : text;
}

class Writer {
  readonly #bytes: Buffer;
  #at = 4;

  /** @param room at least the length of the frame */
  constructor(type: number, room: number) {
    this.#bytes = Buffer.allocUnsafe(room);
    this.byte(type);
  }

  byte(value: number): this {
    this.#bytes[this.#at++] = value;
    return this;
  }

  number(value: number): this {
    this.#at = this.#bytes.writeUInt32LE(value, this.#at);
    return this;
  }

  name(text: string): this {
    const length = this.#bytes.write(text, this.#at + 1);
    if (length > MAX_NAME) throw new RangeError(`a name of ${length} bytes is too long for the keeper`);
    this.byte(length);
    this.#at += length;
    return this;
  }

  bytes(bytes: Uint8Array): this {
    if (bytes.length > MAX_NOTE) throw new RangeError(`a note of ${bytes.length} bytes is too long for the keeper`);
    return this.number(bytes.length).raw(bytes, bytes.length);
  }

  raw(bytes: Uint8Array, length: number): this {
    if (bytes.length !== length) throw new RangeError(`${bytes.length} bytes instead of ${length}`);
    this.#bytes.set(bytes, this.#at);
    this.#at += length;
    return this;
  }

  frame(): Uint8Array {
    this.#bytes.writeUInt32LE(this.#at - 4, 0);
    return this.#bytes.subarray(0, this.#at);
  }
}

/** Bytes that the frame of a message has at most; three for each UTF-16 unit of a text. */
function roomFor(message: Message): number {
  const texts =
    ('key' in message ? message.key.length : 0) +
    ('label' in message ? message.label.length : 0) +
    ('reason' in message ? message.reason.length : 0);
  return 40 + 3 * texts + ('bytes' in message ? message.bytes.length : 0);
}

/**
 * Takes a stream of bytes apart. Each frame is copied into memory of its own, so that a small note that is kept does not keep a
 * large chunk.
 */
export class Frames {
  readonly #header = new Uint8Array(4);
  #headerFilled = 0;
  #frame: Uint8Array | null = null;
  #filled = 0;
  #begun = false;

  /**
   * @param chunk the next bytes, cut anywhere
   * @returns the messages that are complete now, to be taken to the end; the first one of a stream is a `hello`, and no other
   * @throws OUTLIVE_KEEPER_PROTOCOL for anything else, another version included; the stream cannot be read on then
   */
  *push(chunk: Uint8Array): Generator<Message, void, undefined> {
    for (let at = 0; at < chunk.length; ) {
      if (this.#frame === null) {
        this.#header[this.#headerFilled++] = chunk[at++];
        if (this.#headerFilled < 4) continue;
        const length = new DataView(this.#header.buffer).getUint32(0, true);
        // Before the greeting nobody is known to speak the protocol at all, so not much memory is given.
        if (length < 1 || length > (this.#begun ? MAX_FRAME : MAX_HELLO)) throw violation(`a frame of ${length} bytes`);
        this.#frame = new Uint8Array(length);
        this.#headerFilled = this.#filled = 0;
      }
      const part = chunk.subarray(at, at + this.#frame.length - this.#filled);
      this.#frame.set(part, this.#filled);
      this.#filled += part.length;
      at += part.length;
      if (this.#filled < this.#frame.length) continue;
      const message = decode(this.#frame);
      this.#frame = null;
      if (this.#begun === (message.type === 'hello'))
        throw violation(this.#begun ? 'a second greeting' : 'no greeting');
      this.#begun = true;
      yield message;
    }
  }
}

const MAX_HELLO = 1 + 4 + 4 + 1 + TOKEN_LENGTH;

/** @param frame type and fields, without the length */
function decode(frame: Uint8Array): Message {
  const from = new Reader(frame);
  const message = fields(TYPES[from.byte() - 1], from);
  from.end();
  return message;
}

function fields(type: Message['type'] | undefined, from: Reader): Message {
  switch (type) {
    case 'hello': {
      if (from.number() !== MAGIC) throw violation('no greeting');
      const version = from.number();
      if (version !== VERSION) throw violation(`version ${version} is spoken, this is version ${VERSION}`);
      return { type, channel: from.one(CHANNELS), token: from.raw(TOKEN_LENGTH) };
    }
    case 'keep':
      return { type, key: from.name(), kind: from.one(KINDS), label: from.name() };
    case 'drop':
      return { type, key: from.name() };
    case 'note':
      return { type, key: from.name(), replace: from.flag(), bytes: from.bytes() };
    case 'kept':
      return { type, key: from.name(), kind: from.one(KINDS), label: from.name(), complete: from.flag() };
    case 'claimed':
    case 'taken':
      return { type, count: from.number() };
    case 'ping':
    case 'pong':
      return { type, number: from.number() };
    case 'refused':
      return { type, asked: from.one(ASKED), key: from.name(), reason: from.name() };
    case 'welcome':
    case 'claim':
    case 'retire':
    case 'retired':
    case 'upgrade':
    case 'upgraded':
      return { type };
    case undefined:
      throw violation('an unknown message');
  }
}

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

class Reader {
  #at = 0;
  readonly #view: DataView;

  constructor(readonly frame: Uint8Array) {
    this.#view = new DataView(frame.buffer, frame.byteOffset, frame.byteLength);
  }

  byte(): number {
    return this.raw(1)[0];
  }

  number(): number {
    const { byteOffset } = this.raw(4);
    return this.#view.getUint32(byteOffset - this.frame.byteOffset, true);
  }

  flag(): boolean {
    const value = this.byte();
    if (value > 1) throw violation('a flag that is none');
    return value === 1;
  }

  one<T>(values: readonly T[]): T {
    const value = values[this.byte()];
    if (value === undefined) throw violation('an unknown value');
    return value;
  }

  name(): string {
    const bytes = this.raw(this.byte());
    try {
      return utf8.decode(bytes);
    } catch {
      throw violation('a name that is not UTF-8');
    }
  }

  bytes(): Uint8Array {
    return this.raw(this.number());
  }

  raw(length: number): Uint8Array {
    if (this.#at + length > this.frame.length) throw violation('a frame that is too short');
    return this.frame.subarray(this.#at, (this.#at += length));
  }

  end(): void {
    if (this.#at !== this.frame.length) throw violation('a frame that is too long');
  }
}
