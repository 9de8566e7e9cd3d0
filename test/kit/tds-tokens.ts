/** Names of the tokens of TDS replies, and the order in which they come: enough to compare two servers' answers. */

const MOST_72 = 0x72000000;

class Bytes {
  at = 0;
  constructor(readonly buffer: Buffer) {}
  get left(): number {
    return this.buffer.length - this.at;
  }
  skip(count: number): Buffer {
    if (this.left < count) throw new Error(`a token is cut at ${this.at}`);
    this.at += count;
    return this.buffer.subarray(this.at - count, this.at);
  }
  u8 = () => this.skip(1)[0];
  u16 = () => this.skip(2).readUInt16LE();
  u32 = () => this.skip(4).readUInt32LE();
  text = () => this.skip(this.u8() * 2).toString('utf16le');
}

type Skip = (bytes: Bytes) => void;

/** Reads TYPE_INFO; gives what reads a value. */
function typeInfo(bytes: Bytes): { id: number; skip: Skip } {
  const id = bytes.u8();
  const fixed: Record<number, number> = {
    31: 0,
    48: 1,
    50: 1,
    52: 2,
    56: 4,
    58: 4,
    59: 4,
    60: 8,
    61: 8,
    62: 8,
    122: 4,
    127: 8,
  }; // prettier-ignore
  if (id in fixed) return { id, skip: (b) => b.skip(fixed[id]) };
  const byLength: Skip = (b) => b.skip(b.u8());
  const plp: Skip = (b) => {
    if (b.skip(8).every((byte) => byte === 0xff)) return;
    for (let size = b.u32(); size > 0; size = b.u32()) b.skip(size);
  };
  if ([0x24, 0x26, 0x68, 0x6d, 0x6e, 0x6f, 0x29, 0x2a, 0x2b].includes(id)) {
    bytes.u8();
    return { id, skip: byLength };
  }
  if (id === 0x28) return { id, skip: byLength };
  if (id === 0x6a || id === 0x6c) {
    bytes.skip(3);
    return { id, skip: byLength };
  }
  if ([0xa5, 0xa7, 0xad, 0xaf, 0xe7, 0xef].includes(id)) {
    const size = bytes.u16();
    if (id !== 0xa5 && id !== 0xad) bytes.skip(5);
    if (size === 0xffff) return { id, skip: plp };
    return {
      id,
      skip: (b) => {
        const length = b.u16();
        if (length !== 0xffff) b.skip(length);
      },
    };
  }
  if (id === 0xf1) {
    if (bytes.u8() !== 0) throw new Error('an XML schema');
    return { id, skip: plp };
  }
  if (id === 0x62) {
    bytes.u32();
    return { id, skip: (b) => b.skip(b.u32()) };
  }
  if (id === 0x22 || id === 0x23 || id === 0x63) {
    bytes.u32();
    if (id !== 0x22) bytes.skip(5);
    return {
      id,
      skip: (b) => {
        const pointer = b.u8();
        if (pointer === 0) return;
        b.skip(pointer + 8);
        b.skip(b.u32());
      },
    };
  }
  throw new Error(`type ${id.toString(16)}`);
}

/** One token: its name, with what tells it from others of its kind. */
export interface TokenShape {
  readonly name: string;
  /** Of ENVCHANGE its kind, of ERROR and INFO the number, of DONE the status, of COLMETADATA the types. */
  readonly detail: string;
}

/** The tokens of a reply. Throws for what is none. */
export function tokensOf(reply: Buffer, version = 0x74000004): TokenShape[] {
  const bytes = new Bytes(reply);
  const shapes: TokenShape[] = [];
  let columns: { id: number; skip: Skip }[] = [];
  const userType = version >= MOST_72 ? 4 : 2;
  while (bytes.left > 0) {
    const token = bytes.u8();
    switch (token) {
      case 0x79:
        shapes.push({ name: 'RETURNSTATUS', detail: String(bytes.skip(4).readInt32LE()) });
        break;
      case 0x81: {
        const count = bytes.u16();
        columns = Array.from({ length: count === 0xffff ? 0 : count }, () => {
          bytes.skip(userType + 2);
          const type = typeInfo(bytes);
          if ([0x22, 0x23, 0x63].includes(type.id)) {
            const parts = version >= MOST_72 ? bytes.u8() : 1;
            for (let i = 0; i < parts; i++) bytes.skip(bytes.u16() * 2);
          }
          bytes.text();
          return type;
        });
        shapes.push({ name: 'COLMETADATA', detail: columns.map(({ id }) => id.toString(16)).join(' ') });
        break;
      }
      case 0xd1:
        for (const { skip } of columns) skip(bytes);
        shapes.push({ name: 'ROW', detail: '' });
        break;
      case 0xd2: {
        const nulls = bytes.skip(Math.ceil(columns.length / 8));
        columns.forEach(({ skip }, i) => {
          if ((nulls[i >> 3] & (1 << (i & 7))) === 0) skip(bytes);
        });
        shapes.push({ name: 'ROW', detail: '' });
        break;
      }
      case 0xac: {
        bytes.u16();
        const name = bytes.text();
        bytes.skip(1 + userType + 2);
        typeInfo(bytes).skip(bytes);
        shapes.push({ name: 'RETURNVALUE', detail: name });
        break;
      }
      case 0xaa:
      case 0xab: {
        const inside = bytes.skip(bytes.u16());
        shapes.push({ name: token === 0xaa ? 'ERROR' : 'INFO', detail: String(inside.readInt32LE(0)) });
        break;
      }
      case 0xe3: {
        const inside = bytes.skip(bytes.u16());
        shapes.push({ name: 'ENVCHANGE', detail: String(inside[0]) });
        break;
      }
      case 0xad:
        shapes.push({ name: 'LOGINACK', detail: bytes.skip(bytes.u16()).subarray(1, 5).toString('hex') });
        break;
      case 0xa9:
      case 0xa4:
      case 0xa5:
        shapes.push({ name: 'ORDER', detail: '' });
        bytes.skip(bytes.u16());
        break;
      case 0xae:
        for (let id = bytes.u8(); id !== 0xff; id = bytes.u8()) {
          shapes.push({ name: 'FEATUREEXTACK', detail: String(id) });
          bytes.skip(bytes.u32());
        }
        break;
      case 0xe4:
        shapes.push({ name: 'SESSIONSTATE', detail: '' });
        bytes.skip(bytes.u32());
        break;
      case 0xfd:
      case 0xfe:
      case 0xff: {
        const status = bytes.u16();
        bytes.skip(version >= MOST_72 ? 10 : 6);
        shapes.push({ name: ['DONE', 'DONEPROC', 'DONEINPROC'][token - 0xfd], detail: status.toString(16) });
        break;
      }
      default:
        throw new Error(`token ${token.toString(16)} at ${bytes.at - 1}`);
    }
  }
  return shapes;
}

/** The messages in a stream of packets: their type and payload. */
export function messagesOf(stream: Buffer): { type: number; payload: Buffer; packets: Buffer[] }[] {
  const found: { type: number; payload: Buffer; packets: Buffer[] }[] = [];
  let packets: Buffer[] = [];
  for (let at = 0; at + 8 <= stream.length; ) {
    const length = stream.readUInt16BE(at + 2);
    packets.push(stream.subarray(at, at + length));
    if ((stream[at + 1] & 1) !== 0) {
      found.push({ type: stream[at], payload: Buffer.concat(packets.map((packet) => packet.subarray(8))), packets });
      packets = [];
    }
    at += length;
  }
  return found;
}
