// Text, tables and data as safe HTML.

export interface Table {
  head: string[];
  /** Cells of text; the first of each row is its heading. */
  rows: string[][];
}

/** Text for HTML, attributes included. */
export function escape(text: string): string {
  return text
    .replaceAll('&', '&amp;')
    .replaceAll('<', '&lt;')
    .replaceAll('>', '&gt;')
    .replaceAll('"', '&quot;')
    .replaceAll("'", '&#39;');
}

/** JSON that cannot end the script element it stands in. */
export function jsonForScript(value: unknown): string {
  return JSON.stringify(value).replaceAll('<', '\\u003c');
}

/** A table that scrolls by itself where it is too wide, reachable by keyboard. */
export function tableHtml({ head, rows }: Table, caption: string): string {
  const heads = head.map((cell) => `<th scope="col">${escape(cell)}</th>`).join('');
  const body = rows.map(([first = '', ...rest]) => {
    const cells = rest.map((cell) => `<td>${escape(cell)}</td>`).join('');
    return `<tr><th scope="row">${escape(first)}</th>${cells}</tr>`;
  });
  return `<div class="table" tabindex="0" role="region" aria-label="${escape(caption)}"><table>
<caption>${escape(caption)}</caption><thead><tr>${heads}</tr></thead>
<tbody>${body.join('\n')}</tbody></table></div>`;
}
