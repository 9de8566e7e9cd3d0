import { Writer } from '../../codecs/tds/bytes.js';
import { BIGVARBINTYPE, DATETIME2NTYPE, DECIMALNTYPE, INTNTYPE, NVARCHARTYPE } from '../../codecs/tds/types.js';

const COLLATION = Buffer.from('0904d00034', 'hex');

/**
 * A result as SQL Server 2022 sends it (TDS 7.4): rows of a key, a name, an amount, a time and, in every hundredth, a document of some
 * kilobytes; then DONE. The payload of one message.
 */
export function tdsResult(rows: number): Uint8Array {
  const out = new Writer();
  out.byte(0x81).ushort(5);
  const column = (name: string, type: number, info: (to: Writer) => unknown): void => {
    out.ulong(0).ushort(9).byte(type);
    info(out);
    out.bVarchar(name);
  };
  column('id', INTNTYPE, (to) => to.byte(4));
  column('name', NVARCHARTYPE, (to) => to.ushort(200).raw(COLLATION));
  column('amount', DECIMALNTYPE, (to) => to.byte(9).byte(18).byte(4));
  column('changed', DATETIME2NTYPE, (to) => to.byte(7));
  column('document', BIGVARBINTYPE, (to) => to.ushort(0xffff));
  const document = Buffer.alloc(3000, 7);
  for (let row = 0; row < rows; row++) {
    const name = Buffer.from(`Customer number ${row}`, 'utf16le');
    out.byte(0xd1).byte(4).ulong(row);
    out.ushort(name.length).raw(name);
    out
      .byte(9)
      .byte(1)
      .ulonglong(BigInt(row * 12345));
    out.byte(8).raw(Buffer.from('20e1f8a5b8474807', 'hex'));
    if (row % 100 === 0) out.ulonglong(BigInt(document.length)).ulong(document.length).raw(document).ulong(0);
    else out.ulonglong(0xffffffffffffffffn);
  }
  out.byte(0xfd).ushort(0x10).ushort(0xc1).ulonglong(BigInt(rows));
  return out.done();
}
