// main.rs: libdeflate, zlib-ng and miniz at a level ("libdeflate|zlib-ng|miniz LEVEL"): standard input to output.
use std::io::{Read, Write};

fn zlib_ng(data: &[u8], level: i32) -> Vec<u8> {
    use libz_ng_sys as z;
    let mut stream = std::mem::MaybeUninit::<z::z_stream>::zeroed();
    let s = stream.as_mut_ptr();
    let size = std::mem::size_of::<z::z_stream>() as i32;
    unsafe {
        let version = z::zlibVersion();
        assert_eq!(z::deflateInit2_(s, level, 8, 15 + 16, 8, 0, version, size), z::Z_OK);
        let mut out = vec![0u8; z::deflateBound(s, data.len() as _) as usize + 1024];
        (*s).next_in = data.as_ptr() as *mut u8;
        (*s).avail_in = data.len() as u32;
        (*s).next_out = out.as_mut_ptr();
        (*s).avail_out = out.len() as u32;
        assert_eq!(z::deflate(s, z::Z_FINISH), z::Z_STREAM_END);
        out.truncate((*s).total_out as usize);
        z::deflateEnd(s);
        out
    }
}

fn miniz(data: &[u8], level: u8) -> Vec<u8> {
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    out.extend(miniz_oxide::deflate::compress_to_vec(data, level));
    out.extend(crc32fast::hash(data).to_le_bytes());
    out.extend((data.len() as u32).to_le_bytes());
    out
}

fn libdeflate(data: &[u8], level: i32) -> Vec<u8> {
    let mut c = libdeflater::Compressor::new(libdeflater::CompressionLvl::new(level).unwrap());
    let mut out = vec![0u8; c.gzip_compress_bound(data.len())];
    let n = c.gzip_compress(data, &mut out).unwrap();
    out.truncate(n);
    out
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let level: i32 = arguments[2].parse().unwrap();
    let mut data = Vec::new();
    std::io::stdin().read_to_end(&mut data).unwrap();
    let out = match arguments[1].as_str() {
        "libdeflate" => libdeflate(&data, level),
        "zlib-ng" => zlib_ng(&data, level),
        "miniz" => miniz(&data, level as u8),
        other => panic!("no encoder {other}"),
    };
    std::io::stdout().write_all(&out).unwrap();
}
